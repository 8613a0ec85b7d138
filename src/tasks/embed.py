"""Runs a backbone over the patches of every slide, or over every image, and keeps the activations."""

import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from src.activation_spec import ActivationSpec
from src.data.current_inputs import CurrentInputs
from src.data.embedding.embedder import Embedder
from src.data.embedding.image_store import check_specs, embed_images, is_of, lacking_images
from src.data.embedding.pictures import SlidePatches
from src.data.images.source import as_decoded, open_images
from src.data.slides.feature_writer import is_embedded, write_features
from src.data.slides.patching import read_patch_file, read_scale
from src.data.slides.slide_files import find_slide
from src.files import list_files, remove_leftovers
from src.folder_names import computes_activations, features_folder, part_folder, part_of
from src.interrupts import keeping
from src.models.backbones.base import Backbone
from src.progress import track
from src.report.page import Page
from src.runs.lock import lock_run
from src.runs.rundir import RunDir
from src.stores.activations.merge import move_shards
from src.tasks import tile
from src.tasks.streaming import open_backbone

_LOGGER = logging.getLogger(__name__)


def missing_inputs(cfg: Any) -> list[str]:
    """Returns why there is nothing to embed, or no need to."""
    if cfg.dataset.get("images_dir") is not None:
        has_backbone = computes_activations(cfg.backbone)
        return [] if has_backbone else [f"backbone={cfg.backbone.name} computes no activations"]
    return tile.missing_inputs(cfg, ("patches", "slides"))


def run(cfg: Any, rundir: RunDir) -> dict[str, float]:
    """Writes activations into `dataset.features_dir`: of slides CLAM's files, of images one packed store.

    With several layers, each goes into the folder that it would have alone. What is done is not embedded again, but
    with `overwrite`, or when slides, patches or images have changed. With `embed.part=3/16` a sixteenth of the items is
    embedded, beside other processes; of images, a run without `part` takes the parts over.

    Returns:
        The numbers of items and rows, and the width of the activations of the first layer.

    Raises:
        FileNotFoundError: when there are no patch files, or a slide or image is missing.
        ValueError: when the folder holds activations of another spec, or an image is bad and bad files are errors.
    """
    backbone = open_backbone(cfg)
    embedder = Embedder(backbone, cfg.embed.batch_size, cfg.embed.n_workers)
    folders = _folders(cfg, backbone)
    started = time.perf_counter()
    with ExitStack() as locks:
        if len(folders) > 1:  # of a single one the run itself holds the lock
            for folder in folders.values():
                locks.enter_context(lock_run(folder.parent / f".{folder.name}.lock"))
        embed = _embed_images if cfg.dataset.get("images_dir") is not None else _embed_slides
        results = embed(cfg, rundir, embedder, folders)
    waited = embedder.seconds_waited / (time.perf_counter() - started)
    _LOGGER.info("The model waited for pictures %.0f %% of the time.", 100 * waited)
    rows = ", ".join(f"{backbone.d_in(layer):,} wide at layer {layer}" for layer in folders)
    paragraphs = [f"{backbone.description}: {rows}; tokens: {backbone.tokens}. Preprocessing: {backbone.transform}."]
    rundir.write_page(Page("Backbone", paragraphs))
    return results


def _folders(cfg: Any, backbone: Backbone) -> dict[str, Path]:
    """Returns the folder of each layer: that of the configuration, or those that the layers would have alone."""
    folder = Path(cfg.dataset.features_dir)
    if len(backbone.chosen) == 1:
        return {backbone.chosen[0]: folder}
    tiling = None if cfg.dataset.get("images_dir") is not None else cfg.tile
    is_named = folder.name == features_folder(cfg.backbone, tiling)
    found = {}
    for layer, asked in zip(backbone.chosen, cfg.backbone.layer, strict=True):
        alone = "output" if asked is None else asked
        name = features_folder(cfg.backbone, tiling, alone) if is_named else f"{folder.name}_layer{alone}"
        found[layer] = folder.with_name(name)
    return found


def _embed_slides(cfg: Any, rundir: RunDir, embedder: Embedder, folders: dict[str, Path]) -> dict[str, float]:
    """Writes `h5_files/<slide_id>.h5` and `pt_files/<slide_id>.pt` of every slide with patches; resumes by slide."""
    backbone = embedder.backbone
    if many := [layer for layer in folders if backbone.n_tokens(layer) > 1]:
        raise ValueError(
            f"Expected one vector a patch of a slide, got {backbone.n_tokens(many[0])} tokens (backbone.tokens="
            f"{backbone.tokens}): give backbone.tokens=mean, cls or pooled."
        )
    patches_dir = Path(cfg.dataset.patches_dir)
    patch_files = list_files(patches_dir / "patches", "*.h5")
    if not patch_files:
        raise FileNotFoundError(f"Expected patch files in {patches_dir / 'patches'}, found none. Run task=tile.")
    patch_files = part_of(cfg.embed.part, patch_files)
    inputs = CurrentInputs(cfg).read("weights", "slides cut", "patches all")
    rundir.record(*inputs)
    digests = {Path(one.name).stem: one.digest for one in inputs if one.what == "slides cut"}
    if not cfg.embed.part:
        for folder in folders.values():
            for kind in ("h5_files", "pt_files"):
                remove_leftovers(folder / kind)
    counts: dict[str, int] = {}
    lacking: dict[Path, list[str]] = {}
    specs: dict[Path, dict[str, ActivationSpec]] = {}

    def units() -> Iterator[SlidePatches]:
        for path in patch_files:
            coords, size_level0, side = read_patch_file(path)
            cut = {"patch_size": str(side), "mpp": read_scale(path)}
            own = {layer: replace(backbone.spec(layer), **cut) for layer in folders}
            counts[path.stem] = len(coords)
            needed = [
                layer
                for layer, folder in folders.items()
                if cfg.overwrite
                or not is_embedded(
                    folder / "h5_files" / path.name, coords, own[layer], digests.get(path.stem, ""), rundir.replaces
                )
            ]
            if needed:
                slide = find_slide(cfg.dataset.slides_dir, path.stem)
                lacking[slide], specs[slide] = needed, own
                yield SlidePatches(slide, coords, size_level0, side)

    n_done = 0
    with keeping(lambda: f"{n_done} slides embedded" if n_done and not cfg.overwrite else ""):
        for slide, found in track(embedder.embed(units()), "Embedding slides", len(patch_files)):
            slide_id = slide.path.stem
            for layer in lacking.pop(slide.path):
                stated = {
                    "patch_size_level0": slide.size_level0,
                    "name": slide_id,
                    "spec": specs[slide.path][layer].to_json(),
                    "slide": digests.get(slide_id, ""),
                }
                write_features(folders[layer], found[layer][:, 0], slide.coords, stated)
            n_done += 1
    table = pd.DataFrame(sorted(counts.items()), columns=["slide_id", "n_patches"])
    rundir.add_table("embedded", table, "Patches by slide.", 0)
    first = next(iter(folders))
    return {"n_items": len(counts), "n_rows": sum(counts.values()), "d_in": backbone.d_in(first)}


def _embed_images(cfg: Any, rundir: RunDir, embedder: Embedder, folders: dict[str, Path]) -> dict[str, float]:
    """Fills the packed store of each layer; resumes by image."""
    backbone, dataset = embedder.backbone, cfg.dataset
    rundir.record(*CurrentInputs(cfg).read("weights", "images all"))
    source = open_images(dataset)
    item_ids = part_of(cfg.embed.part, source.item_ids)
    bad: dict[str, str] = {}
    identities = {}
    for item_id in item_ids:
        try:
            identities[item_id] = source.identity(item_id)
        except FileNotFoundError as error:
            if dataset.on_bad_file != "skip":
                raise
            bad[item_id] = str(error)
    stores: dict[str, tuple[Path, ActivationSpec, Sequence[str]]] = {}
    for layer, folder in folders.items():
        spec = as_decoded(backbone.spec(layer), dataset)
        own = folder if cfg.embed.part is None else folder / part_folder(cfg.embed.part)
        if cfg.overwrite or (rundir.replaces and not is_of(folder, spec)):
            shutil.rmtree(own, ignore_errors=True)
        check_specs(folder, spec)
        check_specs(own, spec)
        if cfg.embed.part is None:
            for part in sorted(folder.glob("part_*_of_*")):
                with lock_run(folder / f".{part.name}.lock"):
                    move_shards(part, folder)
        stores[layer] = own, spec, lacking_images([folder, own], identities)
    n_lacking = len(set[str]().union(*(item_ids for _, _, item_ids in stores.values())))
    n_batches = -(-n_lacking // embedder.batch_size)
    steps = embed_images(embedder, source, identities, stores, dataset.on_bad_file == "skip", cfg.embed.dtype)
    with keeping(lambda: "the images of whole batches are kept"):
        for left_out in track(steps, f"Embedding {n_lacking} of {len(item_ids)} images", n_batches):
            bad |= left_out
    for item_id, reason in bad.items():
        _LOGGER.warning("Skipped image %s: %s", item_id, reason)
    first = next(iter(folders))
    n_images = len(item_ids) - len(bad)
    return {"n_items": n_images, "n_rows": n_images * backbone.n_tokens(first), "d_in": backbone.d_in(first)}
