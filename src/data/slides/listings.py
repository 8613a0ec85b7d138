"""What CAMELYON16 and PANDA hold, by the rules behind the csv files that sae-1n publishes (PSB 2026)."""

from collections.abc import Sequence
from pathlib import Path

from src.csv_tables import read_table, refuse_blanks, repeated, some
from src.data.listing import Listing
from src.files import list_files

_TRAIN_LABELS = {"normal": "normal", "tumor": "tumor"}
_TEST = "test"
_PANDA_COLUMNS = ("image_id", "data_provider", "isup_grade")


def list_camelyon16(
    features_dir: str | Path, annotations_dir: str | Path | None, patches_dir: str | Path | None = None
) -> Listing:
    """Lists the slides of CAMELYON16 that have features (or patches), sorted by id.

    A slide is a case. Train slides say their label in their name (`normal_001`, `tumor_001`); a test slide holds tumour
    exactly when it has outlines, `<slide_id>.xml` in the folder of annotations or in one below it. In sae-1n a missing
    folder makes all test slides normal; here it is an error.

    Args:
        features_dir: folder of `<slide_id>.h5` or of `h5_files/<slide_id>.h5`.
        annotations_dir: folder of the outlines of train and test slides.
        patches_dir: folder of `patches/<slide_id>.h5`, asked while there are no features.

    Returns:
        Columns case_id, slide_id, label (normal or tumor) and split (train or test).

    Raises:
        FileNotFoundError: when there are no features and no patches, or test slides and no outlines of any.
        ValueError: when a slide has another name.
    """
    slide_ids = _ids_with_h5(features_dir, patches_dir)
    prefixes = {slide_id: slide_id.lower().partition("_")[0] for slide_id in slide_ids}
    if wrong := [slide_id for slide_id, prefix in prefixes.items() if prefix not in {*_TRAIN_LABELS, _TEST}]:
        raise ValueError(
            f"Expected slides of CAMELYON16 named normal_*, tumor_* or test_*, got {some(wrong)}: take them out of the "
            "folder, or give another dataset."
        )
    outlined = _outlined_test_slides(annotations_dir) if _TEST in prefixes.values() else set()
    labels = [
        ("tumor" if slide_id.lower() in outlined else "normal") if prefix == _TEST else _TRAIN_LABELS[prefix]
        for slide_id, prefix in prefixes.items()
    ]
    splits = [_TEST if prefix == _TEST else "train" for prefix in prefixes.values()]
    return Listing({"case_id": slide_ids, "slide_id": slide_ids, "label": labels, "split": splits})


def list_panda(train_csv: str | Path, features_dir: str | Path, patches_dir: str | Path | None = None) -> Listing:
    """Lists the slides of PANDA that have features (or patches), sorted by id.

    A slide is a case. ISUP grade 0 is normal, every other is tumour. Lines of the csv without features are left out.

    Args:
        train_csv: the data set's own `train.csv`, columns image_id, data_provider and isup_grade.
        features_dir: folder of `<image_id>.h5` or of `h5_files/<image_id>.h5`.
        patches_dir: folder of `patches/<image_id>.h5`, asked while there are no features.

    Returns:
        Columns case_id, slide_id, label (normal or tumor) and data_provider.

    Raises:
        FileNotFoundError: when there is no csv, or no features and no patches.
        ValueError: when the csv lacks a column, names an image twice, or has a grade that is no whole number; when a
            slide with features is not in it.
    """
    if not Path(train_csv).is_file():
        raise FileNotFoundError(f"Expected train.csv of PANDA at {train_csv}, found none: copy it there.")
    table = read_table(train_csv)
    if missing := [name for name in _PANDA_COLUMNS if name not in table]:
        raise ValueError(
            f"Expected columns {', '.join(_PANDA_COLUMNS)} in {train_csv}, got {sorted(table)}, without "
            f"{', '.join(missing)}: give PANDA's own train.csv."
        )
    image_ids, providers, grades = (table[name] for name in _PANDA_COLUMNS)
    refuse_blanks(image_ids, "image_id", train_csv)
    if twice := repeated(image_ids):
        raise ValueError(f"Expected each image once in {train_csv}, got {some(twice)} twice: remove one line.")
    if wrong := [grade for grade in grades if not (grade.isascii() and grade.isdigit())]:
        raise ValueError(f"Expected whole numbers as isup_grade in {train_csv}, got {some(wrong)}: correct them there.")
    known = dict(zip(image_ids, zip(providers, grades, strict=True), strict=True))
    slide_ids = _ids_with_h5(features_dir, patches_dir)
    if unknown := [slide_id for slide_id in slide_ids if slide_id not in known]:
        raise ValueError(
            f"Expected a line of {train_csv} for every slide with features, got none for {some(unknown)}: add them "
            "there, or take the features away."
        )
    labels = ["normal" if int(known[slide_id][1]) == 0 else "tumor" for slide_id in slide_ids]
    columns = {"case_id": slide_ids, "slide_id": slide_ids, "label": labels}
    return Listing(columns | {"data_provider": [known[slide_id][0] for slide_id in slide_ids]})


def _ids_with_h5(features_dir: str | Path, patches_dir: str | Path | None) -> list[str]:
    """Returns the names of the h5 files of the first folder that has any, sorted."""
    places = [Path(features_dir) / "h5_files", Path(features_dir)]
    places += [] if patches_dir is None else [Path(patches_dir) / "patches"]
    for place in places:
        if files := list_files(place, "*.h5"):
            return sorted(path.stem for path in files)
    raise FileNotFoundError(
        f"Expected <slide_id>.h5 in one of {', '.join(map(str, places))}, found none. Give dataset.features_dir, or "
        "make them with task=tile and task=embed."
    )


def _outlined_test_slides(annotations_dir: str | Path | None) -> set[str]:
    """Returns the ids of test slides with outlines, in lower case: the data set has been spelled in both."""
    files: Sequence[Path] = [] if annotations_dir is None else list_files(Path(annotations_dir), "**/*.xml")
    outlined = {path.stem.lower() for path in files if path.stem.lower().startswith(f"{_TEST}_")}
    if not outlined:
        raise FileNotFoundError(
            f"Expected outlines of test slides (test_<number>.xml) in {annotations_dir}, found none: without them "
            "every test slide would count as normal. Give dataset.annotations_dir=<folder>."
        )
    return outlined
