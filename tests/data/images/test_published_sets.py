"""Each published data set is read as conf/dataset describes it, from a miniature in its layout; a defect is named."""

import pickle
from collections import Counter

import pytest

from src import config
from src.data.images.errors import ImageFileError
from src.data.images.source import ImageSource
from src.data.listing import list_dataset
from src.records import to_items
from src.split_files import FoldSplit, check_split
from tests.data.images import miniatures
from tests.data.images.miniatures import cut_off, replace_text

config.register_resolvers()

# Items, cases, labels of the target with how many items have them, and sizes of the parts.
FACTS = {
    "ham10000": (36, 18, dict.fromkeys(["nv", "mel", "bcc"], 12), None),
    "ham10000_splits": (
        36,
        36,
        dict.fromkeys(["melanocytic nevi", "melanoma", "basal cell carcinoma"], 12),
        {"train": 18, "val": 7, "test": 11},
    ),
    "vindr_mammo": (40, 10, {"absent": 30, "present": 10}, {"train": 24, "test": 16}),
    "vindr_mammo_png": (40, 10, {"absent": 30, "present": 10}, {"train": 24, "test": 16}),
    "mll23": (24, 24, dict.fromkeys(["basophil", "lymphocyte_reactive", "smudge_cell"], 8), None),
    "acevedo": (
        12,
        12,
        dict.fromkeys(["neutrophil_band", "neutrophil_segmented", "neutrophil", "metamyelocyte", "ig", "platelet"], 2),
        None,
    ),
    "matek": (6, 6, {"BAS": 3, "EOS": 3}, None),
    "bmc": (6, 6, {"ABE": 3, "ART": 3}, None),
    "hehr": (36, 18, dict.fromkeys(["control", "NPM1", "PML_RARA"], 12), None),
    "chexpert": (24, 12, {"absent": 10, "present": 12, None: 2}, {"train": 16, "test": 8}),
    "mimic_cxr": (24, 12, {"absent": 12, "present": 10, None: 2}, {"train": 12, "val": 4, "test": 8}),
    "cc3m": (19, 19, {None: 19}, {"train": 14, "test": 5}),
    "cc3m_img2dataset": (25, 25, {None: 25}, {"train": 11, "val": 7, "test": 7}),
    "imagenet": (
        36,
        36,
        dict.fromkeys(["n01440764", "n01443537", "n02012849", "n03126707"], 9),
        {"train": 24, "test": 12},
    ),
    "imagenet_lists": (7, 7, {"n01440764": 3, "n01443537": 4}, {"train": 4, "test": 3}),
    "places365": (12, 12, {"airfield": 6, "apartment_building-outdoor": 6}, {"train": 6, "test": 6}),
    "places365_lists": (7, 7, {"airfield": 3, "apartment_building/outdoor": 4}, {"train": 4, "test": 3}),
}


def dataset_of(name, folder, *overrides):
    typed = [f"dataset={name}", f"dataset.dir={folder}", "backbone=random_vit_tiny", *overrides]
    return config.compose(typed).dataset


def made(name, folder):
    if name.startswith("vindr_mammo") and not name.endswith("png"):
        pytest.importorskip("pydicom")
    getattr(miniatures, name)(folder)
    return folder


def items_of(listing, dataset):
    columns = dataset.target, dataset.labels, dataset.uncertain
    return to_items(listing.columns, "listing", dataset.class_names, *columns)


def read_all(listing, folder, tmp_path):
    lines = [f"{item_id},{path}" for item_id, path in zip(*map(listing.columns.get, ("image_id", "path")), strict=True)]
    path = tmp_path / "dataset.csv"
    path.write_text("\n".join(["image_id,path", *lines]) + "\n")
    images = ImageSource(path, folder)
    return {item_id: images.read(item_id) for item_id in images.item_ids}


@pytest.mark.parametrize("name", FACTS)
def test_a_data_set_is_read_in_its_own_layout(name, tmp_path):
    folder = made(name, tmp_path / "images")
    dataset = dataset_of(name, folder)
    listing = list_dataset(dataset)
    items = items_of(listing, dataset)
    n_items, n_cases, labels, parts = FACTS[name]
    assert (len(items), len({item.case_id for item in items})) == (n_items, n_cases)
    assert Counter(item.label for item in items) == labels
    if parts is None:
        assert listing.parts is None
    else:
        assert listing.parts is not None
        assert {part: len(ids) for part, ids in listing.parts.items()} == parts
    assert all(image.ndim == 3 for image in read_all(listing, folder, tmp_path).values())


def test_every_published_data_set_has_a_miniature():
    listed = {path.stem for path in (config.CONF_DIR / "dataset").glob("*.yaml") if "shared/images" in path.read_text()}
    assert {*listed, "vindr_mammo_png", "cc3m_img2dataset"} == set(FACTS) == set(DEFECTS)


def remove(folder, path):
    (folder / path).unlink()


def name_a_function(folder, _):
    content = {"melanoma": print}
    (folder / "class2images_val.p").write_bytes(pickle.dumps(content))


# What is wrong, and what is said of it.
DEFECTS = {
    "ham10000": (remove, "HAM10000_images_part_1/ISIC_0024307.jpg", "one image called 'ISIC_0024307'"),
    "ham10000_splits": (name_a_function, "", r"class2images_val\.p, got a pickle that names builtins\.print"),
    "vindr_mammo": (replace_text, "finding_annotations.csv;['No Finding'];No Finding", r"line 2, got 'No Finding'"),
    "vindr_mammo_png": (replace_text, "vindr_detection_v1_folds.csv;10.5;30.5", r"xmin < xmax .*'30\.5'"),
    "mll23": (cut_off, "basophil/basophil_3.TIF", r"basophil_3\.TIF"),
    "acevedo": (lambda folder, _: (folder / "ig/IG_100100.jpg").rename(folder / "ig/x.jpg"), "", "nothing in 'ig__x'"),
    "matek": (cut_off, "EOS/EOS_0002.tiff", r"EOS_0002\.tiff"),
    "bmc": (cut_off, "ART/1001-2000/ART_00001.jpg", r"ART_00001\.jpg"),
    "hehr": (
        lambda folder, _: (folder / "control/AQA/image_0.tif").rename(folder / "control/image_0.tif"),
        "",
        "nothing in 'control__image_0'",
    ),
    "chexpert": (replace_text, "CheXpert-v1.0-small/train.csv;-1.0;2.0", r"column Pleural Effusion of .*got '2\.0'"),
    "mimic_cxr": (replace_text, "mimic-cxr-2.0.0-split.csv.gz;00000003-pa;other", "none of '00000003-pa'"),
    "cc3m": (cut_off, "cc3m-train-0001.tar", r"whole tar file .*cc3m-train-0001\.tar"),
    "cc3m_img2dataset": (lambda folder, _: (folder / "training/00300.tar").unlink(), "", r"like training/003\*\.tar"),
    "imagenet": (
        lambda folder, _: (folder / "val/n01440764/ILSVRC2012_val_00000000.JPEG").rename(folder / "val/flat.JPEG"),
        "",
        r"got 'val/flat\.JPEG' beside",
    ),
    "imagenet_lists": (replace_text, "val.txt; 1;", "a path and a number in line 1"),
    "places365": (cut_off, "train/airfield/00000001.jpg", r"airfield/00000001\.jpg"),
    "places365_lists": (replace_text, "places365_val.txt; 1; 9", "line 1 of .*got 9"),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_a_defect_is_named(name, tmp_path):
    folder = made(name, tmp_path / "images")
    break_, where, said = DEFECTS[name]
    if break_ is replace_text:
        path, old, new = where.split(";")
        replace_text(folder / path, old, new)
    elif break_ is cut_off:
        cut_off(folder / where)
    else:
        break_(folder, where)
    with pytest.raises((FileNotFoundError, ValueError), match=said):
        read_all(list_dataset(dataset_of(name, folder)), folder, tmp_path)


def test_a_split_that_parts_photographs_of_a_lesion_is_refused_when_lesions_are_given(tmp_path):
    folder = made("ham10000_splits", tmp_path)
    cases = "dataset.listing.cases={csv:HAM10000_metadata.csv,id:image_id,case:lesion_id}"
    dataset = dataset_of("ham10000_splits", folder, cases)
    listing = list_dataset(dataset)
    assert len(set(listing.columns["case_id"])) == 18
    split = FoldSplit(0, **{part: tuple(ids) for part, ids in listing.parts.items()})
    with pytest.raises(ValueError, match="HAM_"):
        check_split(split, items_of(listing, dataset), "listing", needed=())


def test_boxes_of_mammograms_are_of_their_categories(tmp_path):
    listing = list_dataset(dataset_of("vindr_mammo_png", made("vindr_mammo_png", tmp_path)))
    assert Counter(listing.boxes["label"]) == {"Suspicious Calcification": 10, "Mass": 6, "Skin Thickening": 6}
    lines = list(zip(*listing.boxes.values(), strict=True))
    assert lines[0][1:] == (10.5, 12.25, 20, 24, "Suspicious Calcification")
    assert lines[1][1:] == (-1.5, 0, 4, 5, "Mass")
    assert Counter(listing.columns["mass"]) == {"absent": 34, "present": 6}
    assert set(listing.columns["density"]) == {"DENSITY C"}


@pytest.mark.parametrize(("policy", "n_present"), [("unlabelled", 12), ("present", 14), ("absent", 12)])
def test_uncertain_findings_follow_the_policy(policy, n_present, tmp_path):
    dataset = dataset_of("chexpert", made("chexpert", tmp_path), f"dataset.uncertain={policy}")
    counts = Counter(item.label for item in items_of(list_dataset(dataset), dataset))
    assert counts["present"] == n_present
    assert counts[None] == (2 if policy == "unlabelled" else 0)


def test_findings_that_are_not_mentioned_are_absent_or_unlabelled(tmp_path):
    folder = made("chexpert", tmp_path)
    edema = {}
    for meaning in ("absent", "unlabelled"):
        dataset = dataset_of("chexpert", folder, f"dataset.listing.unmentioned={meaning}")
        edema[meaning] = Counter(item.labels["edema"] for item in items_of(list_dataset(dataset), dataset))
    assert edema == {"absent": {"absent": 24}, "unlabelled": {"absent": 12, None: 12}}


def test_views_can_be_chosen(tmp_path):
    folder = made("chexpert", tmp_path)
    listing = list_dataset(dataset_of("chexpert", folder, "dataset.listing.views=[Frontal]"))
    assert set(listing.columns["view"]) == {"Frontal"}
    assert len(listing.columns["path"]) == 12


def test_samples_of_tar_files_in_folders_have_ids_of_their_own(tmp_path):
    listing = list_dataset(dataset_of("cc3m_img2dataset", made("cc3m_img2dataset", tmp_path)))
    assert listing.columns["image_id"][0] == "training__00000__000000000"
    assert listing.columns["path"][0] == "training/00000.tar/000000000.jpg"


def test_labels_of_tar_files_are_files_of_the_samples(tmp_path):
    miniatures.cc3m(tmp_path, {"a.tar": 3})
    listing = list_dataset(
        dataset_of(
            "cc3m", tmp_path, "dataset.listing.shards={train:null,test:null,all:a.tar}", "dataset.listing.label=txt"
        )
    )
    assert listing.columns["label"] == ["a picture"] * 3
    with pytest.raises(ImageFileError, match=r"000000000\.cls in .*a\.tar"):
        list_dataset(
            dataset_of(
                "cc3m", tmp_path, "dataset.listing.shards={train:null,test:null,all:a.tar}", "dataset.listing.label=cls"
            )
        )


def test_names_of_classes_come_after_the_halves_of_the_classes(tmp_path):
    folder = made("imagenet", tmp_path)
    names = f"dataset.label_names={folder / 'LOC_synset_mapping.txt'}"
    halves = {}
    for half in ("base", "novel"):
        listing = list_dataset(dataset_of("imagenet", folder, names, f"dataset.class_half={half}"))
        halves[half] = set(listing.columns["label"])
        assert {part: len(ids) for part, ids in listing.parts.items()} == {"train": 12, "test": 6}
    assert halves["base"] == {"tench, Tinca tinca", "goldfish, Carassius auratus"}
    assert halves["novel"] == {"crane (n02012849)", "crane (n03126707)"}
