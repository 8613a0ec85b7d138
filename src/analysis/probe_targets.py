"""What a probe is to tell of items: one of the classes, or which of several labels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from src.csv_tables import some
from src.records import Item


@dataclass(frozen=True)
class ProbeTargets:
    """The targets of items.

    Attributes:
        classes: names of classes or labels.
        values: by item id: the class's index, or [n_classes] float32, 1, 0 or NaN where nobody knows.
        is_multilabel: which of the two.
    """

    classes: tuple[str, ...]
    values: Mapping[str, np.ndarray]
    is_multilabel: bool

    def of(self, item_ids: Sequence[str]) -> np.ndarray:
        """Returns the targets of items: [n] int64, or [n, n_classes] float32."""
        if self.is_multilabel:
            return np.array([self.values[one] for one in item_ids], np.float32).reshape(-1, len(self.classes))
        return np.array([self.values[one] for one in item_ids], np.int64)

    def members(self, item_ids: Sequence[str]) -> np.ndarray:
        """Returns which classes items are of: [n, n_classes] float, 1, 0 or NaN where nobody knows."""
        targets = self.of(item_ids)
        return targets if self.is_multilabel else (targets[:, None] == np.arange(len(self.classes))).astype(np.float32)

    def require_all(self, item_ids: Sequence[str], part: str) -> None:
        """Refuses items among which a class, or a label either way, does not occur.

        Raises:
            ValueError: naming the classes.
        """
        members = self.members(item_ids)
        if absent := [name for name, column in zip(self.classes, members.T, strict=True) if not (column == 1).any()]:
            raise ValueError(
                f"Expected {part} items of every class, got none of {some(absent)} among {len(item_ids)}: use another "
                "split, or leave the class out of dataset.class_names (probe.columns, or another probe.positive)."
            )
        if always := [name for name, column in zip(self.classes, members.T, strict=True) if not (column == 0).any()]:
            raise ValueError(
                f"Expected {part} items without {some(always)}, got none among {len(item_ids)}: nothing is to be told "
                "there. Leave it out, or use another split."
            )


def targets_of_classes(items: Mapping[str, Item], classes: Sequence[str]) -> ProbeTargets:
    """Returns the classes of the labelled items.

    Args:
        items: by id.
        classes: of the target.
    """
    places = {name: np.array(index) for index, name in enumerate(classes)}
    values = {item_id: places[item.label] for item_id, item in items.items() if item.label in places}
    return ProbeTargets(tuple(classes), values, False)


def targets_of_columns(items: Mapping[str, Item], columns: Sequence[str], positive: str) -> ProbeTargets:
    """Returns the labels of the items of which any is known.

    Args:
        items: by id.
        columns: label columns that were read, one a label.
        positive: what a column says where its label is there.

    Raises:
        ValueError: when a column was not read, says nothing, or never says `positive`.
    """
    for column in columns:
        found = {item.labels.get(column) for item in items.values()} - {None}
        if any(column not in item.labels for item in items.values()):
            raise ValueError(
                f"Expected probe.columns among dataset.labels, got {column!r}: give dataset.labels=[{column},...]."
            )
        if positive not in found:
            said = some(sorted(map(str, found)))
            raise ValueError(
                f"Expected label column {column!r} to say {positive!r} of some items, got {said}: give "
                "probe.positive=<what it says where the label is there>."
            )
    values = {}
    for item_id, item in items.items():
        labels = [item.labels[column] for column in columns]
        if any(label is not None for label in labels):
            values[item_id] = np.array(
                [np.nan if one is None else float(one == positive) for one in labels], np.float32
            )
    return ProbeTargets(tuple(columns), values, True)
