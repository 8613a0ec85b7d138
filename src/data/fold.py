"""What a task on one fold starts from: slides, classes, split and packed activations, checked against each other."""

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.data.features import FeatureFolder
from src.data.packing import ActivationStore, pack_activations
from src.data.row_source import RowSource
from src.data.rows import StoreRows
from src.data.standardize import Standardizer, fit_standardizer
from src.data.tensor_folder import TensorFolder
from src.records import PARTS, FittedSlide, FoldSplit, Slide, check_split, order_classes, read_slides, read_split

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class FoldData:
    """One fold of a dataset of patch features.

    Attributes:
        slides: every slide of the csv that has features, by slide id.
        classes: class names; a slide's label index is the position of its label. Of two, the positive is last. One
            where images have no labels.
        split: the fold's slides by part.
        folder: the feature files, with coords and patch sizes.
        store: the packed activations of all slides of the csv.
        standardizer: per-feature mean and scale of the fold's train rows, when the dataset asks for it.
    """

    slides: dict[str, Slide]
    classes: tuple[str, ...]
    split: FoldSplit
    folder: FeatureFolder
    store: ActivationStore
    standardizer: Standardizer | None

    @property
    def d_in(self) -> int:
        """The width of the activations."""
        return self.store.d_in

    @property
    def inputs(self) -> dict[Path, str]:
        """What the activations come from, with its digest."""
        return {self.store.path: ",".join(sorted(self.store.index["digest"]))}

    def rows(self, parts: str) -> RowSource:
        """Returns the activations of the slides of a part or union of parts."""
        return StoreRows(self.store, self.split.slide_ids(parts))

    def label_index(self, slide_id: str) -> int:
        """Returns the label of a slide as an index into `classes`.

        Raises:
            ValueError: when there are no classes to tell apart.
        """
        if len(self.classes) < 2:
            raise ValueError(f"Expected at least two classes among the labels, got {list(self.classes)}.")
        return self.classes.index(self.slides[slide_id].label)

    def fitted(self, parts: str) -> list[FittedSlide]:
        """Returns what the leakage rule needs to know of the slides of a part or union of parts."""
        return [self._fitted(slide_id) for slide_id in self.split.slide_ids(parts)]

    def _fitted(self, slide_id: str) -> FittedSlide:
        n_patches = len(self.store.rows(slide_id))
        return FittedSlide(slide_id, self.slides[slide_id].case_id, self.store.digest(slide_id), n_patches)


def open_fold(dataset: Any, fold: int, cache_dir: str | Path) -> FoldData:
    """Opens one fold of a dataset, packing its features on first use.

    Args:
        dataset: the dataset's configuration: `features_dir` (or `tensors`), `metadata_csv`, `splits_dir`,
            `class_names`, `positive_class`, `standardize`, `on_bad_file`.
        fold: the cross-validation fold.
        cache_dir: where packed activations lie.

    Raises:
        FileNotFoundError: when the csv, the split or the features of a slide do not exist.
        ValueError: when they disagree with each other, or a feature file is bad and bad files are errors.
    """
    folder = open_features(dataset)
    # Tensors may come as a train and a validation file only.
    slides, split = read_fold(dataset, fold, ("train",) if isinstance(folder, TensorFolder) else ("train", "test"))
    labels = {slide.label for slide in slides.values()}
    classes = order_classes(labels, dataset.positive_class) if len(labels) > 1 else tuple(labels)
    # Slides of the csv that no part of the split names are taken along when they have features, and not missed else.
    needed = set(split.slide_ids("train+val+test"))
    wanted = [slide_id for slide_id in slides if slide_id in needed or slide_id in folder.paths]
    store = pack_activations(folder, wanted, Path(cache_dir) / "activations")
    packed = set(store.index["slide_id"])
    if gone := sorted(needed - packed):
        _LOGGER.warning("Left out of fold %d, their feature files being bad or missing: %s", fold, ", ".join(gone))
        split = keep_slides(split, packed)
    slides = {slide_id: slide for slide_id, slide in slides.items() if slide_id in packed}
    standardizer = fit_standardizer(store, split.train) if dataset.standardize else None
    return FoldData(slides, classes, split, folder, store, standardizer)


def read_fold(dataset: Any, fold: int, needed: Sequence[str]) -> tuple[dict[str, Slide], FoldSplit]:
    """Returns the slides of the csv by slide id and the split of a fold, which agree with each other.

    Args:
        dataset: its configuration: `metadata_csv`, `splits_dir`, `class_names`.
        fold: the cross-validation fold.
        needed: parts that must not be empty.

    Raises:
        FileNotFoundError: when the csv or the split does not exist.
        ValueError: when they disagree.
    """
    slides = {slide.slide_id: slide for slide in read_slides(dataset.metadata_csv, dataset.class_names)}
    split = read_split(dataset.splits_dir, fold)
    check_split(split, list(slides.values()), str(dataset.metadata_csv), needed)
    return slides, split


def keep_slides(split: FoldSplit, kept: Collection[str]) -> FoldSplit:
    """Returns a split without the slides that are not among those kept."""
    parts = {part: tuple(slide_id for slide_id in getattr(split, part) if slide_id in kept) for part in PARTS}
    return FoldSplit(split.fold, **parts)


def open_features(dataset: Any) -> FeatureFolder:
    """Opens the feature files of a dataset: one a slide, or a few tensors of many images where it names `tensors`."""
    if (tensors := dataset.get("tensors")) is not None:
        return TensorFolder(tensors, dataset.tensor_ids, dataset.tensor_labels, dataset.on_bad_file)
    return FeatureFolder(dataset.features_dir, dataset.on_bad_file, dataset.patches_dir)
