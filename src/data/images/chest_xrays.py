"""CheXpert and MIMIC-CXR: chest X-rays with fourteen findings, each present, absent, uncertain or not mentioned."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from src.csv_tables import read_table, repeated, some
from src.data.images.parts import group_by_part
from src.data.images.places import DataFolder, find_source
from src.data.images.table import ABSENT, PRESENT
from src.data.listing import Listing
from src.data.readers.tensor_files import image_ids
from src.records import UNCERTAIN

_MEANINGS = {1.0: PRESENT, 0.0: ABSENT, -1.0: UNCERTAIN}
_PATIENT = re.compile(r"(?:^|/)(patient\d+)/")


def list_chexpert(
    folder: str | Path,
    csvs: Mapping[str, str | None],
    findings: Mapping[str, str],
    unmentioned: Literal["absent", "unlabelled"] = "absent",
    views: Sequence[str] | None = None,
) -> Listing:
    """Lists the images of CheXpert (J. Irvin et al., AAAI 2019), in the layout of CheXpert-v1.0 and -small.

    Args:
        folder: that the column `Path` is relative to (`CheXpert-v1.0-small/train/patient00001/study1/...`).
        csvs: the csv of each part of the split, relative to `folder`; None where there is no such part.
        findings: columns to take over as labels, by the name that they get: 1.0 is `present`, 0.0 `absent`, -1.0 the
            label -1 (see `dataset.uncertain`).
        unmentioned: what an empty cell is.
        views: of the column `Frontal/Lateral` to keep; None: both.

    Returns:
        Columns `case_id` (the patient), `image_id`, the findings, `view` and `path`.

    Raises:
        FileNotFoundError: when a csv or an image is missing.
        ValueError: when a column is missing, a value is another number, or a path names no patient.
    """
    made: dict[str, list[str]] = {name: [] for name in ("case_id", "image_id", *findings, "view", "path")}
    parts: dict[str, list[str]] = {}
    for part, file in csvs.items():
        if file is None:
            continue
        source = find_source(folder, file)
        table = read_table(source)
        _refuse_missing(table, ["Path", "Frontal/Lateral", *findings.values()], source)
        kept = [i for i, view in enumerate(table["Frontal/Lateral"]) if views is None or view in views]
        paths = [table["Path"][i] for i in kept]
        if lost := [path for path in paths if _PATIENT.search(path) is None]:
            raise ValueError(f"Expected a folder patient<number> in column Path of {source}, got {some(lost)}.")
        _refuse_missing_images(folder, paths, source)
        parts[part] = image_ids(paths, source)
        made["image_id"] += parts[part]
        made["case_id"] += [match[1] for path in paths if (match := _PATIENT.search(path))]
        for name, column in findings.items():
            made[name] += [_finding(table[column][i], unmentioned, column, source) for i in kept]
        made["view"] += [table["Frontal/Lateral"][i] for i in kept]
        made["path"] += paths
    return Listing(made, parts)


def list_mimic_cxr(
    folder: str | Path,
    metadata: str,
    split: str,
    labels: str,
    findings: Mapping[str, str],
    unmentioned: Literal["absent", "unlabelled"] = "absent",
    views: Sequence[str] | None = None,
    suffix: str = ".jpg",
) -> Listing:
    """Lists the images of MIMIC-CXR-JPG (A. Johnson et al., 2019), or of MIMIC-CXR with its csv files.

    Args:
        folder: holds `files/p<first two digits>/p<subject>/s<study>/<dicom>.jpg`.
        metadata: the csv with a line an image (`dicom_id,subject_id,study_id,ViewPosition,...`), relative to `folder`;
            files called `.gz` are unpacked.
        split: the csv with `dicom_id` and `split` (train, validate or test).
        labels: the csv with a line a study (`subject_id,study_id` and the findings); studies that it lacks are
            unlabelled.
        findings: see `list_chexpert`.
        unmentioned: see there.
        views: of the column `ViewPosition` to keep (`[PA, AP]`); None: all.
        suffix: of the images; `.dcm` for MIMIC-CXR itself.

    Returns:
        Columns `case_id` (the subject), `image_id` (the DICOM id), the findings, `view`, `study_id` and `path`.

    Raises:
        FileNotFoundError: when a csv or an image is missing.
        ValueError: when a column is missing, an image is in no part, or a value is another number.
    """
    source, by_study = find_source(folder, metadata), _read_studies(find_source(folder, labels), findings, unmentioned)
    table, split_csv = read_table(source), find_source(folder, split)
    of_split = read_table(split_csv)
    _refuse_missing(table, ["dicom_id", "subject_id", "study_id", "ViewPosition"], source)
    _refuse_missing(of_split, ["dicom_id", "split"], split_csv)
    part_of = dict(zip(of_split["dicom_id"], of_split["split"], strict=True))
    kept = [i for i, view in enumerate(table["ViewPosition"]) if views is None or view in views]
    ids, subjects, studies = ([table[name][i] for i in kept] for name in ("dicom_id", "subject_id", "study_id"))
    if twice := repeated(ids):
        raise ValueError(f"Expected every dicom_id once in {source}, got {some(twice)} more than once.")
    if lost := [item_id for item_id in ids if item_id not in part_of]:
        raise ValueError(f"Expected every image of {source} in {split_csv}, got none of {some(lost)}.")
    names = zip(ids, subjects, studies, strict=True)
    paths = [f"files/p{subject[:2]}/p{subject}/s{study}/{item_id}{suffix}" for item_id, subject, study in names]
    _refuse_missing_images(folder, paths, source)
    unlabelled = dict.fromkeys(findings, "")
    found = [by_study.get(study, unlabelled) for study in studies]
    columns = {"case_id": subjects, "image_id": ids, **{name: [one[name] for one in found] for name in findings}}
    columns |= {"view": [table["ViewPosition"][i] for i in kept], "study_id": studies, "path": paths}
    return Listing(columns, group_by_part(ids, [part_of[item_id] for item_id in ids], f"column split of {split_csv}"))


def _read_studies(path: Path, findings: Mapping[str, str], unmentioned: str) -> dict[str, dict[str, str]]:
    """Returns the findings of each study of MIMIC-CXR, by its id."""
    table = read_table(path)
    _refuse_missing(table, ["study_id", *findings.values()], path)
    read = {
        name: [_finding(value, unmentioned, column, path) for value in table[column]]
        for name, column in findings.items()
    }
    return {study: {name: read[name][i] for name in findings} for i, study in enumerate(table["study_id"])}


def _refuse_missing(table: Mapping[str, object], columns: Sequence[str], source: Path) -> None:
    if missing := [column for column in columns if column not in table]:
        raise ValueError(f"Expected the columns {list(columns)} in {source}, got {list(table)}: {missing} are missing.")


def _refuse_missing_images(folder: str | Path, paths: Sequence[str], source: Path) -> None:
    data = DataFolder(folder)
    for path in paths:
        data.find(path, str(source))


def _finding(text: str, unmentioned: str, column: str, source: Path) -> str:
    if not text:
        return ABSENT if unmentioned == "absent" else ""
    try:
        return _MEANINGS[float(text)]
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"Expected 1, 0, -1 or nothing in column {column} of {source}, got {text!r}: correct it there."
        ) from error
