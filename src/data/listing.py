"""What a data set is found to hold: the content of its csv, before it is written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from itertools import compress
from typing import Any

from src.data.class_labels import class_half, name_labels
from src.records import ID_COLUMNS


@dataclass(frozen=True)
class Listing:
    """The items of a data set, and what its source says of them.

    Attributes:
        columns: of the csv, by name and in order: `case_id`, one of `src.records.ID_COLUMNS`, labels, and whatever else
            belongs to an item, such as `path`. All are texts; an empty label is none.
        parts: ids by part of the split (`train`, `val`, `test`) where the source comes split; None where it does not.
        boxes: a table of boxes by column (`item_id, xmin, ymin, xmax, ymax, label`; pixels of the image as it is
            stored), one line a box; None where there are none.
    """

    columns: Mapping[str, Sequence[str]]
    parts: Mapping[str, Sequence[str]] | None = None
    boxes: Mapping[str, Sequence[object]] | None = None


def list_dataset(dataset: Any) -> Listing:
    """Lists the items of a data set as its configuration asks for: one half of its classes, and by other names.

    Args:
        dataset: `listing`, see `find_items`; `target`; `class_half` and `label_names` where they are there, see
            `src.data.class_labels`.

    Raises:
        FileNotFoundError, ValueError: as `find_items`; when a half of the classes is asked for and there are no labels;
            when labels are to be named and the names are wrong.
    """
    listing, target = find_items(dataset.listing), dataset.get("target", "label")
    if dataset.get("class_half") is not None:
        listing = _keep(listing, class_half(listing.columns.get(target, ()), dataset.class_half))
    if dataset.get("label_names") is not None:
        labels = name_labels(listing.columns.get(target, ()), dataset.label_names)
        listing = replace(listing, columns={**listing.columns, target: labels})
    return listing


def _keep(listing: Listing, kept: Sequence[bool]) -> Listing:
    columns = {name: list(compress(values, kept)) for name, values in listing.columns.items()}
    ids = {item_id for name in ID_COLUMNS for item_id in columns.get(name, ())}
    parts, boxes = listing.parts, listing.boxes
    if parts is not None:
        parts = {part: [item_id for item_id in item_ids if item_id in ids] for part, item_ids in parts.items()}
    if boxes is not None:
        of_kept = [item_id in ids for item_id in boxes["item_id"]]
        boxes = {name: list(compress(values, of_kept)) for name, values in boxes.items()}
    return Listing(columns, parts, boxes)


def find_items(node: Mapping[str, Any]) -> Listing:
    """Calls the function that a data set's configuration names for listing its items.

    Args:
        node: `dataset.listing`: `_target_`, and the function's arguments.

    Raises:
        FileNotFoundError, ValueError: when the data are missing or wrong, as the function says.
    """
    module, _, name = node["_target_"].rpartition(".")
    return getattr(import_module(module), name)(**{key: value for key, value in node.items() if key != "_target_"})
