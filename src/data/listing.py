"""What a data set is found to hold: the content of its csv, before it is written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any


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


def find_items(node: Mapping[str, Any]) -> Listing:
    """Calls the function that a data set's configuration names for listing its items.

    Args:
        node: `dataset.listing`: `_target_`, and the function's arguments.

    Raises:
        FileNotFoundError, ValueError: when the data are missing or wrong, as the function says.
    """
    module, _, name = node["_target_"].rpartition(".")
    return getattr(import_module(module), name)(**{key: value for key, value in node.items() if key != "_target_"})
