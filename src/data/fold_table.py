"""What csv and split say of one fold, without any activations."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from src.files import digest_text
from src.inputs import Input, file_input
from src.records import FoldSplit, Slide, check_split, find_split, order_classes, read_slides, read_split


@dataclass(frozen=True)
class FoldTable:
    """The slides of a dataset's csv and the split of one fold, which agree with each other.

    Attributes:
        slides: every slide of the csv, by slide id.
        split: the fold, as its file has it.
        metadata_csv: the csv.
        splits_dir: the folder of the split.
        positive_class: that of the dataset's configuration.
    """

    slides: dict[str, Slide]
    split: FoldSplit
    metadata_csv: Path
    splits_dir: Path
    positive_class: str | None

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Class names, of two the positive last; one where slides have no labels."""
        labels = {slide.label for slide in self.slides.values()}
        return order_classes(labels, self.positive_class) if len(labels) > 1 else tuple(labels)

    def slide_ids(self, parts: str) -> tuple[str, ...]:
        """Returns the slides of a part or union of parts, as `FoldSplit.slide_ids`; of `all` those of the csv."""
        return tuple(sorted(self.slides)) if parts == "all" else self.split.slide_ids(parts)

    def input(self, what: str) -> Input:
        """Describes what is read of csv and split.

        Args:
            what: `split <parts>`, `cases <parts>` (slide and case ids), `labels <parts>` or `classes`.
        """
        kind, _, parts = what.partition(" ")
        if kind == "split":
            listed = {part: self.split.slide_ids(part) for part in parts.split("+")}
            return file_input(what, find_split(self.splits_dir, self.split.fold), digest_text(repr(listed)))
        if kind == "classes":
            content: Any = self.classes
        else:
            field = {"cases": "case_id", "labels": "label"}[kind]
            content = [(slide_id, getattr(self.slides[slide_id], field)) for slide_id in self.slide_ids(parts)]
        return file_input(what, self.metadata_csv, digest_text(repr(content)))


def read_fold(dataset: Any, fold: int, needed: Sequence[str]) -> FoldTable:
    """Reads the csv and the split of a fold.

    Args:
        dataset: its configuration: `metadata_csv`, `splits_dir`, `class_names`, `positive_class`.
        fold: the cross-validation fold.
        needed: parts that must not be empty.

    Raises:
        FileNotFoundError: when the csv or the split does not exist.
        ValueError: when they disagree.
    """
    slides = {slide.slide_id: slide for slide in read_slides(dataset.metadata_csv, dataset.class_names)}
    split = read_split(dataset.splits_dir, fold)
    check_split(split, list(slides.values()), str(dataset.metadata_csv), needed)
    return FoldTable(slides, split, Path(dataset.metadata_csv), Path(dataset.splits_dir), dataset.positive_class)
