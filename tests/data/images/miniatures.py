"""The published data sets of images in their true layouts, with a few tiny images each."""

import csv
import gzip
import io
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

EDGE = 32
FINDINGS = (
    *("No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema"),
    *("Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other"),
    *("Fracture", "Support Devices"),
)


def picture(number, kind, size=(EDGE, EDGE)):
    """Noise; of kind 1 it has a bright square in the middle."""
    pixels = np.random.default_rng(number).integers(0, 100, (*size, 3), np.uint8)
    if kind:
        pixels[size[0] // 4 : size[0] // 2, size[1] // 4 : size[1] // 2] = [250, 200, 20]
    return pixels


def save(path, number, kind, size=(EDGE, EDGE)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(number, kind, size)).save(path)


def write_csv(path, header, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([header, *rows])
    content = text.getvalue().encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def ham10000(folder):
    """Two photographs of each of 18 lesions, in the two folders of the download."""
    rows = []
    for number in range(36):
        name, lesion, dx = f"ISIC_{24306 + number:07d}", number // 2, ("nv", "mel", "bcc")[number // 2 % 3]
        save(folder / f"HAM10000_images_part_{1 + number // 18}" / f"{name}.jpg", number, dx == "mel")
        rows.append([f"HAM_{lesion:07d}", name, dx, "histo", "55.0", ("male", "female")[lesion % 2], "back"])
    header = ["lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization"]
    write_csv(folder / "HAM10000_metadata.csv", header, rows)


def ham10000_splits(folder):
    """Photographs of one lesion are in train and in test, as in the published split."""
    ham10000(folder)
    names = [f"ISIC_{24306 + number:07d}" for number in range(36)]
    of_part = {"train": names[:19], "val": names[19:26], "test": names[26:]}
    of_part["test"].append(of_part["train"].pop())
    for part, ids in of_part.items():
        by_class = {"melanocytic nevi": [], "melanoma": [], "basal cell carcinoma": []}
        for name in ids:
            number = int(name.removeprefix("ISIC_")) - 24306
            by_class[list(by_class)[number // 2 % 3]].append(name + ".jpg" * (number % 2))
        with open(folder / f"class2images_{part}.p", "wb") as file:
            pickle.dump(by_class, file)


def _mammograms(folder, edges, place, suffix, write):
    """Four views of each of 10 studies; the odd ones have a calcification, the first two views of some a mass too."""
    rows = []
    for study in range(10):
        for view in range(4):
            number, has = 4 * study + view, study % 2 == 1 and view < 2
            study_id, image_id = f"{study:032x}", f"{1000 + number:032x}"
            write(folder / place / study_id / f"{image_id}{suffix}", number, has)
            start = [study_id, f"{study:032x}", image_id, "LR"[view // 2], ("CC", "MLO")[view % 2], "48", "40"]
            start += ["BI-RADS 4" if has else "BI-RADS 1", "DENSITY C"]
            part = "training" if study < 6 else "test"
            if not has:
                rows.append([*start, "['No Finding']", "", *[""] * 4, part])
                continue
            rows.append([*start, "['Suspicious Calcification']", "BI-RADS 4", "10.5", "12.25", "20", "24", part])
            if study % 4 == 1:
                rows.append([*start, "['Mass', 'Skin Thickening']", "BI-RADS 3", "-1.5", "0", "4", "5", part])
    header = ["study_id", "series_id", "image_id", "laterality", "view_position", "height", "width", "breast_birads"]
    header += ["breast_density", "finding_categories", "finding_birads", *edges, "split"]
    return header, rows


def vindr_mammo(folder):
    header, rows = _mammograms(folder, ("xmin", "ymin", "xmax", "ymax"), "images", ".dicom", _save_dicom)
    write_csv(folder / "finding_annotations.csv", header, rows)


def vindr_mammo_png(folder):
    edges = ("resized_xmin", "resized_ymin", "resized_xmax", "resized_ymax")

    def write(path, number, kind):
        save(path, number, kind, (48, 40))

    header, rows = _mammograms(folder, edges, "images_png", ".png", write)
    renamed = {"study_id": "patient_id", "view_position": "view"}
    header = [renamed.get(name, name) for name in header]
    rows = [[*row[:2], f"{row[2]}.png", *row[3:]] for row in rows]
    write_csv(folder / "vindr_detection_v1_folds.csv", header, rows)


def _save_dicom(path, number, kind):
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import DigitalMammographyXRayImageStorageForPresentation, ExplicitVRLittleEndian

    pixels = picture(number, kind, (48, 40))[..., 0].astype(np.uint16) * 16
    file = Dataset()
    file.file_meta = FileMetaDataset()
    file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file.file_meta.MediaStorageSOPClassUID = DigitalMammographyXRayImageStorageForPresentation
    file.SOPClassUID, file.SOPInstanceUID = file.file_meta.MediaStorageSOPClassUID, f"1.2.{number}"
    file.file_meta.MediaStorageSOPInstanceUID = file.SOPInstanceUID
    file.Rows, file.Columns, file.SamplesPerPixel = *pixels.shape, 1
    file.PhotometricInterpretation = "MONOCHROME2"
    file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 16, 12, 11, 0
    file.WindowCenter, file.WindowWidth = 2048, 4096
    file.PixelData = pixels.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    file.save_as(path, enforce_file_format=True)


def mll23(folder):
    for kind, label in enumerate(("basophil", "lymphocyte_reactive", "smudge_cell")):
        for number in range(8):
            save(folder / label / f"{label}_{number}.TIF", 100 * kind + number, kind == 1)


def acevedo(folder):
    names = {"neutrophil": ("BNE", "SNE", "NEUTROPHIL"), "ig": ("MMY", "IG"), "platelet": ("PLATELET",)}
    for label, prefixes in names.items():
        for prefix in prefixes:
            for number in range(2):
                save(folder / label / f"{prefix}_{100100 + number}.jpg", number, label == "ig")


def matek(folder):
    for label in ("BAS", "EOS"):
        for number in range(1, 4):
            save(folder / label / f"{label}_{number:04d}.tiff", number, label == "EOS")
    save(folder / "augmented" / "BAS" / "BAS_0001_aug.tiff", 1, 0)


def bmc(folder):
    for number in range(1, 4):
        save(folder / "ABE" / f"ABE_{number:05d}.jpg", number, 0)
        save(folder / "ART" / ("0001-1000", "1001-2000")[number % 2] / f"ART_{number:05d}.jpg", number, 1)


def hehr(folder):
    """Two cells of each of 18 patients."""
    for patient in range(18):
        label, code = ("control", "NPM1", "PML_RARA")[patient % 3], "AQ" + chr(ord("A") + patient)
        for number in range(2):
            save(folder / label / code / f"image_{number}.tif", 10 * patient + number, patient % 3 == 1)


def chexpert(folder):
    """Two views of each of 12 patients; the odd ones have an effusion, and one is uncertain."""
    header = ["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *FINDINGS]
    for file, patients in (("train", range(8)), ("valid", range(8, 12))):
        rows = []
        for patient in patients:
            for view in range(2):
                kind = patient % 2
                place = f"CheXpert-v1.0-small/{file}/patient{patient + 1:05d}/study1"
                path = f"{place}/view{view + 1}_{('frontal', 'lateral')[view]}.jpg"
                save(folder / path, 10 * patient + view, kind)
                found = dict.fromkeys(FINDINGS, "")
                found["Pleural Effusion"] = "-1.0" if patient == 4 else f"{kind}.0"
                found["Edema"] = "0.0" if kind else ""
                side = [("Frontal", "Lateral")[view], ("AP", "")[view]]
                rows.append([path, "Female", "68", *side, *found.values()])
        write_csv(folder / "CheXpert-v1.0-small" / f"{file}.csv", header, rows)


def mimic_cxr(folder):
    """Two images of each of 12 studies; one study has no findings in the csv."""
    images, parts, studies = [], [], []
    for number in range(12):
        subject, study, kind = f"{10000032 + number}", f"{50414267 + number}", number % 2
        part = "train" if number < 6 else "validate" if number < 8 else "test"
        for view in ("PA", "LATERAL"):
            name = f"{number:08x}-{view.lower()[:2]}"
            save(folder / f"files/p10/p{subject}/s{study}/{name}.jpg", number, kind)
            images.append([name, subject, study, "CHEST (PA AND LAT)", view])
            parts.append([name, study, subject, part])
        found = dict.fromkeys(FINDINGS, "")
        found["Pleural Effusion"] = "1.0" if kind else ""
        if number != 5:
            studies.append([subject, study, *found.values()])
    header = ["dicom_id", "subject_id", "study_id", "PerformedProcedureStepDescription", "ViewPosition"]
    write_csv(folder / "mimic-cxr-2.0.0-metadata.csv.gz", header, images)
    write_csv(folder / "mimic-cxr-2.0.0-split.csv.gz", ["dicom_id", "study_id", "subject_id", "split"], parts)
    write_csv(folder / "mimic-cxr-2.0.0-chexpert.csv.gz", ["subject_id", "study_id", *FINDINGS], studies)


def cc3m(folder, names=None):
    """Tar files of samples; one sample has no image, since its link was dead."""
    names = names or {"cc3m-train-0000.tar": 8, "cc3m-train-0001.tar": 8, "cc3m-validation-0000.tar": 6}
    for shard, (place, n_samples) in enumerate(names.items()):
        path = folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w") as file:
            for number in range(n_samples):
                jpeg = io.BytesIO()
                Image.fromarray(picture(100 * shard + number, number % 2)).save(jpeg, "JPEG")
                files = {"jpg": jpeg.getvalue(), "txt": b"a picture", "json": json.dumps({"key": number}).encode()}
                if number == 3:
                    del files["jpg"]
                for suffix, content in files.items():
                    member = tarfile.TarInfo(f"{number:09d}.{suffix}")
                    member.size = len(content)
                    file.addfile(member, io.BytesIO(content))


def cc3m_img2dataset(folder):
    cc3m(folder, {"training/00000.tar": 12, "training/00300.tar": 8, "validation/00000.tar": 8})


def imagenet(folder):
    for part, n_images in (("train", 6), ("val", 3)):
        for kind, wnid in enumerate(("n01440764", "n01443537", "n02012849", "n03126707")):
            for number in range(n_images):
                name = f"{wnid}_{number}" if part == "train" else f"ILSVRC2012_val_{10 * kind + number:08d}"
                save(folder / part / wnid / f"{name}.JPEG", 10 * kind + number, kind % 2)
    names = ["tench, Tinca tinca", "goldfish, Carassius auratus", "crane", "crane"]
    wnids = ("n01440764", "n01443537", "n02012849", "n03126707")
    lines = [f"{wnid} {name}" for wnid, name in zip(wnids, names, strict=True)]
    (folder / "LOC_synset_mapping.txt").write_text("\n".join(lines) + "\n")


def imagenet_lists(folder):
    lines = {"train": [], "val": []}
    for kind, wnid in enumerate(("n01440764", "n01443537")):
        for number in range(2):
            save(folder / "train" / wnid / f"{wnid}_{number}.JPEG", number, kind)
            lines["train"].append(f"{wnid}/{wnid}_{number}.JPEG {kind}")
    for number in range(1, 4):
        save(folder / "val" / f"ILSVRC2012_val_{number:08d}.JPEG", number, number % 2)
        lines["val"].append(f"ILSVRC2012_val_{number:08d}.JPEG {number % 2}")
    for part, of_part in lines.items():
        (folder / f"{part}.txt").write_text("\n".join(of_part) + "\n")
    (folder / "synsets.txt").write_text("n01440764\nn01443537\n")


def places365(folder):
    for part in ("train", "val"):
        for kind, scene in enumerate(("airfield", "apartment_building-outdoor")):
            for number in range(3):
                name = f"{number:08d}" if part == "train" else f"Places365_val_{10 * kind + number:08d}"
                save(folder / part / scene / f"{name}.jpg", number, kind)


def places365_lists(folder):
    scenes = ("/a/airfield", "/a/apartment_building/outdoor")
    train, val = [], []
    for kind, scene in enumerate(scenes):
        for number in range(1, 3):
            save(folder / f"data_256{scene}" / f"{number:08d}.jpg", number, kind)
            train.append(f"{scene}/{number:08d}.jpg {kind}")
    for number in range(1, 4):
        save(folder / "val_256" / f"Places365_val_{number:08d}.jpg", number, number % 2)
        val.append(f"Places365_val_{number:08d}.jpg {number % 2}")
    (folder / "places365_train_standard.txt").write_text("\n".join(train) + "\n")
    (folder / "places365_val.txt").write_text("\n".join(val) + "\n")
    (folder / "categories_places365.txt").write_text("\n".join(f"{name} {i}" for i, name in enumerate(scenes)) + "\n")


def cut_off(path: Path) -> None:
    """Leaves the first half of a file."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def replace_text(path: Path, old: str, new: str) -> None:
    """Replaces the first occurrence in a text file, also of one that is packed."""
    content = path.read_bytes()
    text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode()
    assert old in text
    changed = text.replace(old, new, 1).encode()
    path.write_bytes(gzip.compress(changed) if path.suffix == ".gz" else changed)
