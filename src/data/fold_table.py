"""What csv and split say of one fold, without any activations."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from src.data.validation import carve_validation
from src.files import digest_text
from src.inputs import Input, file_input
from src.records import ALL, Item, order_classes, read_items
from src.split_files import FoldSplit, check_split, find_split, lists_validation, read_split

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class FoldTable:
    """The items of a dataset's csv and the split of one fold, which agree with each other.

    Attributes:
        items: every item of the csv, by id.
        split: the fold, as its file has it; its validation items taken out of the train items where it has none.
        metadata_csv: the csv.
        split_path: the file of the split; None where there is none.
        positive_class: that of the dataset's configuration.
        class_names: the order of the classes that the configuration gives; None: sorted.
        carved_by: the seed by which validation items were taken out of the train items; None where none were.
    """

    items: dict[str, Item]
    split: FoldSplit
    metadata_csv: Path
    split_path: Path | None
    positive_class: str | None
    class_names: tuple[str, ...] | None = None
    carved_by: int | None = None

    def say_what_was_carved(self) -> None:
        """Logs that validation items were taken out of the train items, if they were."""
        if self.carved_by is not None:
            n_val, n_train = len(self.split.val), len(self.split.train)
            text = "%s has no column val: %d of its %d train items validate (by case, seed %d)."
            _LOGGER.info(text, self.split_path, n_val, n_val + n_train, self.carved_by)

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Class names in the configuration's order or sorted, of two the positive last.

        At most one where items have no labels to tell apart.
        """
        labels = {item.label for item in self.items.values() if item.label is not None}
        return order_classes(labels, self.positive_class, self.class_names) if len(labels) > 1 else tuple(labels)

    def labelled(self, parts: str) -> tuple[str, ...]:
        """Returns the items of a part or union of parts that have a label of the target.

        Raises:
            ValueError: when there are none, or no two classes to tell apart.
        """
        found = tuple(item_id for item_id in self.item_ids(parts) if self.items[item_id].label is not None)
        if not found or len(self.classes) < 2:
            raise ValueError(
                f"Expected labelled items of at least two classes in {parts} of fold {self.split.fold}, got "
                f"{len(found)} of the classes {list(self.classes)} in {self.metadata_csv}: name the label column with "
                "dataset.target=<column>."
            )
        return found

    def label_index(self, item_id: str) -> int:
        """Returns the label of a labelled item as an index into `classes`."""
        return self.classes.index(self.items[item_id].label or "")

    def item_ids(self, parts: str) -> tuple[str, ...]:
        """Returns the items of a part or union of parts, as `FoldSplit.item_ids`; of `all` those of the csv."""
        return tuple(sorted(self.items)) if parts == "all" else self.split.item_ids(parts)

    def input(self, what: str) -> Input:
        """Describes what is read of csv and split.

        Args:
            what: `split <parts>`, `cases <parts>` (item and case ids), `labels <parts>`,
                `columns <parts>` (further labels) or `classes`.
        """
        kind, _, parts = what.partition(" ")
        if kind == "split":
            listed = {part: self.split.item_ids(part) for part in parts.split("+")}
            return file_input(what, self.split_path or self.metadata_csv, digest_text(repr(listed)))
        if kind == "classes":
            content: Any = self.classes
        else:
            field = {"cases": "case_id", "labels": "label", "columns": "labels"}[kind]
            content = [(item_id, getattr(self.items[item_id], field)) for item_id in self.item_ids(parts)]
        return file_input(what, self.metadata_csv, digest_text(repr(content)))


def list_items(dataset: Any, needs_target: bool = True, labels: Sequence[str] = ()) -> list[Item]:
    """Reads the csv of a dataset's configuration; see `read_items`.

    Args:
        dataset: the configuration; of `where` only the items with these values in these columns are taken.
        needs_target: see `read_items`.
        labels: columns to read as labels beside those of the configuration.
    """
    columns = [*dataset.get("labels", ()), *(name for name in labels if name not in dataset.get("labels", ()))]
    target, where = dataset.get("target", "label"), dataset.get("where")
    names, uncertain = dataset.class_names, dataset.get("uncertain")
    return read_items(dataset.metadata_csv, names, target, columns, uncertain, needs_target, where)


def read_fold(cfg: Any, fold: int | str, needed: Sequence[str]) -> FoldTable:
    """Reads the csv and the split of a fold.

    Where the split's file has no column of validation items, they are carved from the train items; see
    `carve_validation`.

    Args:
        cfg: the configuration: `dataset`, `splits` (`val_share` and `seed`, of what is carved) and `repeat`.
        fold: the cross-validation fold; `all` reads no split: every item is a test item.
        needed: parts that must not be empty.

    Raises:
        FileNotFoundError: when the csv or the split does not exist.
        ValueError: when they disagree.
    """
    dataset = cfg.dataset
    items = {item.item_id: item for item in list_items(dataset, needs_target=fold != ALL)}
    metadata_csv, path, carved_by = Path(dataset.metadata_csv), None, None
    if fold == ALL:
        split = FoldSplit(ALL, (), (), tuple(sorted(items)))
    else:
        which = dataset.splits_dir, int(fold), cfg.get("repeat", 0)
        path, split = find_split(*which), read_split(*which)
        check_split(split, list(items.values()), str(metadata_csv), needed)
        if split.train and not lists_validation(path):
            carved_by = cfg.splits.seed
            split = carve_validation(split, items, cfg.splits.val_share, cfg.splits.seed)
    class_names = None if dataset.class_names is None else tuple(dataset.class_names)
    return FoldTable(items, split, metadata_csv, path, dataset.positive_class, class_names, carved_by)
