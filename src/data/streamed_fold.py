"""What training on one fold starts from where activations are computed from slides when they are read."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from src.activation_spec import ActivationSpec
from src.data.feeding.backbone_rows import BackboneRows
from src.data.fold import keep_slides
from src.data.fold_table import FoldTable, read_fold
from src.data.slides.patch_embedder import read_patches
from src.data.slides.patching import read_patch_file
from src.data.slides.slide_files import find_slide
from src.models.backbones.base import Backbone
from src.models.backbones.spec import configured_spec
from src.progress import track
from src.records import FittedItem, FoldSplit

_LOGGER = logging.getLogger(__name__)


class SlidePatches(NamedTuple):
    """Where a slide and its patches are.

    Attributes:
        path: the slide.
        coords: level-0 corners [n_patches, 2].
        size_level0: edge of a patch in level-0 pixels.
        side: edge of the image made of it, in pixels.
    """

    path: Path
    coords: np.ndarray
    size_level0: int
    side: int


@dataclass(frozen=True)
class StreamedFold:
    """One fold of a dataset of slides; neither feature files nor a packed store are read or written.

    Attributes:
        table: the csv and the split, as their files have them.
        split: the fold's slides by part, without those that were skipped.
        patches: of the train and validation slides.
        backbone: on the device it is to run on.
        batch_size: patches that are read, and go through the backbone, at once.
        spec: what the activations are of.
    """

    table: FoldTable
    split: FoldSplit
    patches: dict[str, SlidePatches]
    backbone: Backbone
    batch_size: int
    spec: ActivationSpec
    standardizer: None = None

    @property
    def d_in(self) -> int:
        """The width of the activations."""
        return self.backbone.d_in()

    def rows(self, parts: str) -> BackboneRows:
        """Returns the activations of the train slides, the validation slides or both, computed when they are read."""
        slides = [(item_id, self.patches[item_id].coords) for item_id in self.split.item_ids(parts)]
        return BackboneRows(slides, self._read, self.backbone, self.batch_size)

    def fitted(self, parts: str) -> list[FittedItem]:
        """Returns what the leakage rule needs to know of the slides of a part or union of parts.

        The digest is empty: activations that are not kept have none. The rule still compares slides and cases.
        """
        return [
            FittedItem(item_id, self.table.items[item_id].case_id, "", len(self.patches[item_id].coords))
            for item_id in self.split.item_ids(parts)
        ]

    def _read(self, item_id: str, coords: np.ndarray) -> np.ndarray:
        path, _, size_level0, side = self.patches[item_id]
        return read_patches(path, coords, size_level0, side)


def open_streamed_fold(cfg: Any, backbone: Backbone) -> StreamedFold:
    """Opens one fold of a dataset of slides that task=tile has cut; reads the coords of train and validation slides.

    Args:
        cfg: the configuration: `dataset`, `backbone`, `tile`, `fold` and `embed.batch_size`.
        backbone: on the device it is to run on.

    Raises:
        FileNotFoundError: when the csv, the split, a slide or its patch file does not exist.
        ValueError: when they disagree with each other, or a patch file does not state the size of its patches. With
            `on_bad_file=skip`, slides without a good patch file are left out instead, with a warning.
    """
    dataset = cfg.dataset
    table = read_fold(dataset, cfg.fold, ("train", "test"))
    patches: dict[str, SlidePatches] = {}
    for item_id in track(table.split.item_ids("train+val"), "Looking at patch files"):
        try:
            coords, size_level0, side = read_patch_file(Path(dataset.patches_dir) / "patches" / f"{item_id}.h5")
            # Half of CLAM's int64; the coords of all slides stay in memory.
            coords, path = coords.astype(np.int32), find_slide(dataset.slides_dir, item_id)
            patches[item_id] = SlidePatches(path, coords, size_level0, side)
        except (FileNotFoundError, ValueError) as error:
            if dataset.on_bad_file != "skip":
                raise
            _LOGGER.warning("Skipped slide %s: %s", item_id, error)
    split = keep_slides(table.split, {*patches, *table.split.test})
    spec = configured_spec(cfg.backbone, cfg.tile).filled(backbone.spec())
    return StreamedFold(table, split, patches, backbone, cfg.embed.batch_size, spec)
