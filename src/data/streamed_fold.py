"""What training on one fold starts from where activations are computed when they are read, from slides or images."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from src.activation_spec import ActivationSpec
from src.data.embedding.embedder import Embedder, Pictures
from src.data.embedding.pictures import Images, SlidePatches
from src.data.feeding.backbone_rows import BackboneRows
from src.data.fold import keep_slides
from src.data.fold_table import FoldTable, read_fold
from src.data.images.source import as_decoded, open_images
from src.data.slides.patching import read_patch_file, read_scale
from src.data.slides.slide_files import find_slide
from src.files import digest_array
from src.models.backbones.base import Backbone
from src.progress import track
from src.records import FittedItem
from src.split_files import FoldSplit

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class StreamedFold:
    """One fold of a dataset of slides or images; neither feature files nor a packed store are read or written.

    Attributes:
        table: the csv and the split, as their files have them.
        split: the fold's items by part, without those that were skipped.
        pictures: of the train and validation items, by item; images are read together.
        contents: a text by item that is equal where its pictures are the same.
        embedder: runs the backbone.
        spec: what the activations are of.
        layer: the one that is meant; None where the backbone gives one only.
    """

    table: FoldTable
    split: FoldSplit
    pictures: Mapping[str, Pictures]
    contents: Mapping[str, str]
    embedder: Embedder
    spec: ActivationSpec
    layer: str | None = None
    standardizer: None = None

    @property
    def d_in(self) -> int:
        """The width of the activations of the layer that is meant."""
        return self.embedder.backbone.d_in(self.layer)

    @property
    def columns(self) -> slice:
        """Where the layer's activations lie in a row, which holds those of all layers of the backbone."""
        if self.layer is None:
            return slice(None)
        first = self.embedder.backbone.chosen.index(self.layer) * self.d_in
        return slice(first, first + self.d_in)

    def of_layer(self, layer: int | str | None) -> "StreamedFold":
        """Returns the fold for one of several layers that the backbone gives in one pass."""
        name = self.embedder.backbone.resolve(layer)
        known = self.embedder.backbone.spec(name)
        return replace(self, layer=name, spec=replace(self.spec, layer=known.layer, grid=known.grid))

    def rows(self, parts: str) -> BackboneRows:
        """Returns the activations of the train items, the validation items or both, computed when they are read."""
        item_ids = self.split.item_ids(parts)
        identity = "\n".join(self.contents[item_id] for item_id in item_ids)
        pictures = [self.pictures[item_id] for item_id in item_ids]
        counts = [one.n_pictures for one in pictures]
        return BackboneRows(_together(pictures), counts, identity, self.embedder)

    def fitted(self, parts: str) -> list[FittedItem]:
        """Returns what the leakage rule needs to know of the items of a part or union of parts.

        The digest is empty: activations that are not kept have none. The rule still compares items and cases.
        """
        backbone = self.embedder.backbone
        n_tokens = backbone.n_tokens(backbone.chosen[0])
        return [
            FittedItem(item_id, self.table.items[item_id].case_id, "", self.pictures[item_id].n_pictures * n_tokens)
            for item_id in self.split.item_ids(parts)
        ]


def _together(pictures: Sequence[Pictures]) -> Sequence[Pictures]:
    """Makes one unit of single images, which then fill batches; slides stay as they are."""
    images = [one for one in pictures if isinstance(one, Images)]
    if len(images) < len(pictures) or not images:
        return pictures
    return [replace(images[0], item_ids=[item_id for one in images for item_id in one.item_ids])]


def open_streamed_fold(cfg: Any, backbone: Backbone) -> StreamedFold:
    """Opens one fold of a dataset of images, or of slides that task=tile has cut.

    Of slides the coords of train and validation are read; of images nothing is.

    Args:
        cfg: the configuration: `dataset`, `backbone`, `tile`, `fold` and `embed`.
        backbone: on the device it is to run on.

    Raises:
        FileNotFoundError: when the csv, the split, a slide or its patch file does not exist.
        ValueError: when they disagree with each other, or a patch file does not state the size of its patches. With
            `on_bad_file=skip`, slides without a good patch file are left out instead, with a warning.
    """
    table = read_fold(cfg, cfg.fold, ("train", "test"))
    table.say_what_was_carved()
    item_ids, embedder = table.split.item_ids("train+val"), Embedder(backbone, cfg.embed.batch_size)
    if cfg.dataset.get("images_dir") is not None:
        source, spec = open_images(cfg.dataset), as_decoded(backbone.spec(backbone.chosen[0]), cfg.dataset)
        images = {item_id: Images([item_id], source) for item_id in item_ids}
        contents = {item_id: repr(source.identity(item_id)) for item_id in item_ids}
        return StreamedFold(table, table.split, images, contents, embedder, spec)
    patches, scale = _read_patches(cfg.dataset, item_ids)
    split = keep_slides(table.split, {*patches, *table.split.test})
    contents = {
        item_id: f"{item_id} {digest_array(np.ascontiguousarray(one.coords))}" for item_id, one in patches.items()
    }
    spec = backbone.spec(backbone.chosen[0])
    if patches:
        spec = replace(spec, patch_size=str(next(iter(patches.values())).side), mpp=scale)
    return StreamedFold(table, split, patches, contents, embedder, spec)


def _read_patches(dataset: Any, item_ids: Sequence[str]) -> tuple[dict[str, SlidePatches], str]:
    """Returns where the patches of slides lie, and at which resolution they were cut."""
    patches: dict[str, SlidePatches] = {}
    scale = ""
    for item_id in track(item_ids, "Looking at patch files"):
        try:
            path = Path(dataset.patches_dir) / "patches" / f"{item_id}.h5"
            coords, size_level0, side = read_patch_file(path)
            # Half of CLAM's int64; the coords of all slides stay in memory.
            slide = find_slide(dataset.slides_dir, item_id)
            patches[item_id] = SlidePatches(slide, coords.astype(np.int32), size_level0, side)
            scale = scale or read_scale(path)
        except (FileNotFoundError, ValueError) as error:
            if dataset.on_bad_file != "skip":
                raise
            _LOGGER.warning("Skipped slide %s: %s", item_id, error)
    return patches, scale
