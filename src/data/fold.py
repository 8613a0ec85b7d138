"""What a task on one fold starts from: slides, classes, split and packed activations, checked against each other."""

import json
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.activation_spec import ActivationSpec, require_same_spec
from src.data.feeding.rows import RowSource, StoreRows
from src.data.feeding.standardize import Standardizer, fit_standardizer
from src.data.fold_table import FoldTable, read_fold
from src.data.images.source import as_decoded
from src.data.packing import pack_activations
from src.data.readers.feature_reader import FeatureReader
from src.data.readers.features import FeatureFolder
from src.data.readers.packed_folder import PackedFolder, is_packed
from src.data.readers.tensor_folder import TensorFolder
from src.files import digest_text
from src.inputs import Input
from src.models.backbones.spec import configured_spec
from src.records import PARTS, FittedItem, Item
from src.split_files import FoldSplit
from src.stores.activations.store import ActivationStore

if TYPE_CHECKING:  # a finished run is told without them
    import pandas as pd
    from torch import Tensor

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class FoldData:
    """One fold of a dataset of patch features.

    Attributes:
        table: the csv and the split, as their files have them.
        split: the fold's slides by part, without those whose files are bad or missing and were skipped.
        folder: the feature files, with coords and patch sizes.
        store: the packed activations of all slides of the csv that have features.
        is_standardized: whether the dataset asks for a standardizer.
        spec: what the activations are of, as far as their files say.
    """

    table: FoldTable
    split: FoldSplit
    folder: FeatureReader
    store: ActivationStore
    is_standardized: bool
    spec: ActivationSpec

    @cached_property
    def items(self) -> dict[str, Item]:
        """Every item of the csv that has features, by id."""
        return {item_id: item for item_id, item in self.table.items.items() if item_id in self.store.index}

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; a slide's label index is the position of its label. Of two, the positive is last."""
        return self.table.classes

    @cached_property
    def standardizer(self) -> Standardizer | None:
        """Per-feature mean and scale of the fold's train rows, when the dataset asks for it."""
        return fit_standardizer(self.store, self.split.train) if self.is_standardized else None

    @property
    def d_in(self) -> int:
        """The width of the activations."""
        return self.store.d_in

    def inputs(self, *whats: str) -> list[Input]:
        """Describes what a task reads of this fold.

        Args:
            *whats: `activations <parts>` and `coords <parts>` of the features, where `all` stands for every slide that
                has any, and what `FoldTable.input` knows.
        """
        return [self._input(what) for what in whats]

    def rows(self, parts: str) -> RowSource:
        """Returns the activations of the slides of a part or union of parts."""
        return StoreRows(self.store, self.split.item_ids(parts))

    def label_index(self, item_id: str) -> int:
        """Returns the label of a labelled item as an index into `classes`."""
        return self.table.label_index(item_id)

    def of_labelled(self) -> "FoldData":
        """Returns the fold without the items that have no label, which is logged."""
        labelled = set(self.table.labelled("+".join(PARTS)))
        if left_out := set(self.split.item_ids("+".join(PARTS))) - labelled:
            _LOGGER.info("Left out %d items of fold %s without a label.", len(left_out), self.split.fold)
        return replace(self, split=keep_slides(self.split, labelled))

    def fitted(self, parts: str) -> list[FittedItem]:
        """Returns what the leakage rule needs to know of the slides of a part or union of parts."""
        item_ids = self.split.item_ids(parts)
        return [
            FittedItem(item_id, self.items[item_id].case_id, self.store.digest(item_id), stop - start)
            for item_id, (start, stop) in zip(item_ids, self.store.row_ranges(item_ids), strict=True)
        ]

    def _input(self, what: str) -> Input:
        kind, _, parts = what.partition(" ")
        if kind not in ("activations", "coords"):
            return self.table.input(what)
        rows = [self.store.index[item_id] for item_id in self.store.present(self.table.item_ids(parts))]
        if kind == "activations":
            content = [(row.item_id, row.digest) for row in rows]
        else:
            content = [(row.item_id, row.coords_digest, row.patch_size_level0) for row in rows]
        return Input(what, "", str(self.folder.path), 0, 0, digest_text(json.dumps(content)))


def open_fold(cfg: Any, fold: int | str | None = None, checks_spec: bool = True) -> FoldData:
    """Opens one fold of a dataset, packing its features on first use.

    Args:
        cfg: the configuration: `dataset`, `splits`, `repeat`, `fold`, `paths.cache`; `backbone` and `tile`, which
            activations are to match.
        fold: another cross-validation fold than the configuration's.
        checks_spec: whether activations of another spec than the configuration's are an error.

    Raises:
        FileNotFoundError: when the csv, the split or the features of an item do not exist.
        ValueError: when they disagree with each other, the activations are of another backbone, layer or preprocessing
            than the configuration's, or a feature file is bad and bad files are errors.
    """
    dataset = cfg.dataset
    folder = open_features(dataset)
    # Tensors may come as a train and a validation file only.
    not_empty = ("train",) if isinstance(folder, TensorFolder) else ("train", "test")
    table = read_fold(cfg, cfg.fold if fold is None else fold, not_empty)
    if checks_spec:  # else what a run read is only looked at
        table.say_what_was_carved()
    _ = table.classes  # wrong labels are told before anything is packed
    # Items of the csv that no part of the split names are taken along when they have features, and not missed else.
    needed = set(table.split.item_ids("train+val+test"))
    wanted = needed.union(table.items.keys() & set(folder.item_ids))
    store = pack_activations(folder, wanted, Path(cfg.paths.cache) / "activations")
    if dataset.get("images_dir") is None:
        configured = configured_spec(cfg.backbone, cfg.tile)
    else:
        configured = as_decoded(configured_spec(cfg.backbone), dataset)
    remedy = "Give the backbone's own dataset.features_dir, or make it with task=embed."
    if checks_spec:
        require_same_spec(configured, "the configuration", store.spec, str(folder.path), remedy)
    split = table.split
    if gone := sorted(needed - set(store.item_ids)):
        _LOGGER.warning(
            "Left out of fold %s, their feature files being bad or missing: %s", split.fold, ", ".join(gone)
        )
        split = keep_slides(split, set(store.item_ids))
    return FoldData(table, split, folder, store, bool(dataset.standardize), store.spec)


def tabulate_predictions(
    fold: FoldData, method: str, classes: Sequence[str], probabilities: "Mapping[str, Tensor]"
) -> "pd.DataFrame":
    """Returns a row an item: what a method predicts beside what is known of it.

    Args:
        fold: that of the items.
        method: what predicts.
        classes: of the method.
        probabilities: of each item, by id: [n_classes].
    """
    import pandas as pd

    part_of = {item_id: part for part in PARTS for item_id in fold.split.item_ids(part)}
    rows = [
        (method, part_of[item_id], item_id, fold.items[item_id].case_id, fold.items[item_id].label, *values.tolist())
        for item_id, values in probabilities.items()
    ]
    known = ("method", "split", "item_id", "case_id", "label")
    return pd.DataFrame(rows, columns=[*known, *(f"prob_{name}" for name in classes)])


def keep_slides(split: FoldSplit, kept: Collection[str]) -> FoldSplit:
    """Returns a split without the slides that are not among those kept."""
    return FoldSplit(split.fold, *(tuple(one for one in getattr(split, part) if one in kept) for part in PARTS))


def open_features(dataset: Any) -> FeatureReader:
    """Opens the features of a dataset: a file a slide, the store of its images, or the tensors that it names."""
    if (tensors := dataset.get("tensors")) is not None:
        ids, labels, cases = dataset.tensor_ids, dataset.tensor_labels, dataset.get("tensor_cases")
        return TensorFolder(tensors, ids, labels, cases, dataset.on_bad_file)
    if is_packed(dataset.features_dir):
        return PackedFolder(dataset.features_dir, dataset.on_bad_file)
    return FeatureFolder(dataset.features_dir, dataset.on_bad_file, dataset.patches_dir)
