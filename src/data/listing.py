"""What a data set is found to hold: the content of its csv, before it is written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


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
