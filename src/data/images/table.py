"""Images that a csv of somebody's own lists, with columns of any names."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from src.csv_tables import read_table, refuse_blanks, repeated, some
from src.data.images.boxes import list_boxes
from src.data.images.image_folder import find_by_name
from src.data.images.parts import group_by_part
from src.data.images.places import DataFolder, parse_place
from src.data.listing import Listing
from src.data.readers.tensor_files import image_ids

PRESENT, ABSENT = "present", "absent"
_COLUMNS = ("id", "path", "case", "split", "mask")


def list_table(
    csv: str | Path,
    folder: str | Path,
    columns: Mapping[str, str | None],
    labels: Mapping[str, str] | None = None,
    present: Mapping[str, str] | None = None,
    classes: Sequence[str] | None = None,
    boxes: Mapping[str, str] | None = None,
    pattern: str = "*",
) -> Listing:
    """Lists the images of a csv.

    Args:
        csv: a line an image.
        folder: the data set's, that paths are relative to.
        columns: the csv's names for `id`, `path`, `case`, `split` and `mask`, of which `id` or `path` must be there.
            Without `path` the image is the file below `folder` that has the id for a name; without `id` the id is the
            path without its suffix; without `case` each image is a case of its own; without `split` folds are made.
        labels: the csv's columns to take over as labels, by the name that they get.
        present: the same for columns of numbers: the label is `present` above 0, `absent` at 0, none where empty.
        classes: names of labels that are whole numbers from 0.
        boxes: a csv with a line a box, and its columns; see `list_boxes`.
        pattern: without `path`, what the path of an image must look like, with `*` for anything.

    Returns:
        Columns `case_id`, `image_id`, those of the labels (an empty `label` where there are none), `path` and, where
        there are masks, `mask_path`.

    Raises:
        FileNotFoundError: when the csv or an image is missing.
        ValueError: when a column is missing, an id occurs twice, a path leaves the folder, or a value is wrong.
    """
    table, source = _read(csv), str(csv)
    if unknown := sorted(set(columns) - set(_COLUMNS)):
        raise ValueError(f"Expected columns.{', columns.'.join(_COLUMNS)}, got {unknown}.")
    named = {name: column for name, column in columns.items() if column is not None}
    wanted = [*named.values(), *(labels or {}).values(), *(present or {}).values()]
    if missing := [column for column in wanted if column not in table]:
        raise ValueError(
            f"Expected the columns {wanted} in {csv}, got {list(table)}: {missing} are missing. Name the csv's "
            "own with dataset.listing.columns.<what>=<column>, and with null what it does not have."
        )
    given = {name: table[column] for name, column in named.items()}
    ids, paths = _ids_and_paths(given, folder, source, pattern)
    made = {"case_id": given.get("case", ids), "image_id": ids}
    for name, column in (labels or {}).items():
        made[name] = (
            table[column] if classes is None else [_class(value, classes, column, source) for value in table[column]]
        )
    for name, column in (present or {}).items():
        made[name] = [_presence(value, column, source) for value in table[column]]
    if not labels and not present:
        made["label"] = [""] * len(ids)
    made["path"] = paths
    if "mask" in given:
        made["mask_path"] = given["mask"]
    _check_files(folder, paths, source)
    _check_files(folder, given.get("mask", ()), source, may_be_empty=True)
    parts = group_by_part(ids, given["split"], f"column {named['split']} of {csv}") if "split" in given else None
    return Listing(made, parts, None if boxes is None else list_boxes(ids, **boxes))


def _read(csv: str | Path) -> dict[str, list[str]]:
    if not Path(csv).is_file():
        raise FileNotFoundError(
            f"Expected the csv of the images at {csv}, found no such file. Give dataset.dir=<folder>, or "
            "dataset.listing.csv=<csv>."
        )
    return read_table(csv)


def _ids_and_paths(
    given: Mapping[str, list[str]], folder: str | Path, source: str, pattern: str
) -> tuple[Sequence[str], Sequence[str]]:
    """Returns ids and paths, of which the csv may name one alone."""
    if "id" not in given and "path" not in given:
        raise ValueError(
            f"Expected a column of ids or of paths of {source}, got neither: give columns.id or columns.path."
        )
    if "id" not in given:
        return image_ids(given["path"], source), given["path"]
    refuse_blanks(given["id"], "ids", source)
    if twice := repeated(given["id"]):
        raise ValueError(f"Expected every id once in {source}, got {some(twice)} more than once: remove the others.")
    if "path" in given:
        return given["id"], given["path"]
    return given["id"], find_by_name(folder, given["id"], source, pattern)


def _check_files(folder: str | Path, paths: Sequence[str], source: str, may_be_empty: bool = False) -> None:
    data = DataFolder(folder)
    for line, path in enumerate(paths, 2):
        if path or not may_be_empty:
            data.find(parse_place(path).file, f"{source}, line {line}")


def _class(value: str, classes: Sequence[str], column: str, source: str) -> str:
    if not value:
        return ""
    if not value.isdecimal() or int(value) >= len(classes):
        raise ValueError(
            f"Expected whole numbers from 0 to {len(classes) - 1} in column {column} of {source}, got {value!r}: "
            "correct it there, or dataset.listing.classes."
        )
    return classes[int(value)]


def _presence(value: str, column: str, source: str) -> str:
    try:
        return "" if not value else PRESENT if float(value) > 0 else ABSENT
    except ValueError as error:
        raise ValueError(
            f"Expected numbers in column {column} of {source}, got {value!r}: correct it there."
        ) from error
