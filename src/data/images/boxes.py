"""Boxes that people drew around what is in an image."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from src.csv_tables import read_table, some

BOXES_FILE = "boxes.csv"
"""Lies beside a data set's csv."""
_EDGES = ("xmin", "ymin", "xmax", "ymax")


class Box(NamedTuple):
    """A box in pixels of the image as it is stored, from its upper left corner; edges may lie within a pixel."""

    xmin: float
    ymin: float
    xmax: float
    ymax: float
    label: str


def list_boxes(
    item_ids: Sequence[str],
    csv: str | Path,
    id: str = "image_id",
    label: str | None = "label",
    xmin: str = "xmin",
    ymin: str = "ymin",
    xmax: str = "xmax",
    ymax: str = "ymax",
) -> dict[str, list[Any]]:
    """Reads the boxes of images from a csv with a line a box.

    Args:
        item_ids: of all images; a box of another is an error.
        csv: the file.
        id: its column of ids.
        label: its column of labels; None: boxes have none.
        xmin: its column of left edges, in pixels, as the other three.
        ymin: upper edges.
        xmax: right edges.
        ymax: lower edges.

    Returns:
        The columns of `Listing.boxes`.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when a column or an image is missing, or an edge is no number or beyond its opposite.
    """
    if not Path(csv).is_file():
        raise FileNotFoundError(
            f"Expected a csv of boxes at {csv}, found no such file. Give dataset.listing.boxes.csv."
        )
    table = read_table(csv)
    names = dict(zip(_EDGES, (xmin, ymin, xmax, ymax), strict=True))
    wanted = [id, *names.values(), *([] if label is None else [label])]
    if missing := [column for column in wanted if column not in table]:
        raise ValueError(
            f"Expected the columns {wanted} in {csv}, got {list(table)}: {missing} are missing. Name the csv's "
            "own with dataset.listing.boxes.<what>=<column>."
        )
    if unknown := sorted(set(table[id]) - set(item_ids)):
        raise ValueError(f"Expected boxes of images of the data set in {csv}, got some of {some(unknown)}.")
    edges = {edge: [_number(text, column, csv) for text in table[column]] for edge, column in names.items()}
    for line, (left, top, right, bottom) in enumerate(zip(*edges.values(), strict=True), 2):
        if not (left < right and top < bottom):
            raise ValueError(
                f"Expected edges in the order xmin < xmax and ymin < ymax in {csv}, got {(left, top, right, bottom)} "
                f"in line {line}: correct it there."
            )
    return {"item_id": table[id], **edges, "label": [""] * len(table[id]) if label is None else table[label]}


def read_boxes(dataset: Any) -> dict[str, list[Box]]:
    """Reads the boxes of a data set's images, by item id: `boxes.csv` beside `metadata_csv`.

    Raises:
        FileNotFoundError: when there is no such file.
    """
    path = Path(dataset.metadata_csv).with_name(BOXES_FILE)
    if not path.is_file():
        raise FileNotFoundError(
            f"Expected the boxes of the images at {path}, found no such file. Name them with dataset.listing.boxes and "
            "run task=metadata."
        )
    table = read_table(path)
    boxes: dict[str, list[Box]] = {}
    for item_id, *edges, label in zip(*(table[name] for name in ("item_id", *_EDGES, "label")), strict=True):
        xmin, ymin, xmax, ymax = map(float, edges)
        boxes.setdefault(item_id, []).append(Box(xmin, ymin, xmax, ymax, label))
    return boxes


def _number(text: str, column: str, csv: str | Path) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"Expected numbers in column {column} of {csv}, got {text!r}: correct it there.")
    return value
