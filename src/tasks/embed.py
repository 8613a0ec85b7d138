"""Runs a backbone over the patches of every slide and writes their activations in CLAM's layout."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import torch

from src.activation_spec import ActivationSpec
from src.data.current_inputs import CurrentInputs
from src.data.slides.patch_embedder import PatchEmbedder, read_patches
from src.data.slides.patching import read_patch_file, read_scale
from src.data.slides.slide_files import find_slide
from src.files import list_files, remove_leftovers, write_atomically
from src.interrupts import keeping
from src.progress import track
from src.report.page import Page
from src.runs.rundir import RunDir
from src.tasks import tile
from src.tasks.streaming import open_backbone

_CHUNK_ROWS = 32  # CLAM's


def missing_inputs(cfg: Any) -> list[str]:
    """Returns why there is nothing to embed, or no need to."""
    return tile.missing_inputs(cfg, ("patches", "slides"))


def run(cfg: Any, rundir: RunDir) -> dict[str, float]:
    """Writes `h5_files/<slide_id>.h5` and `pt_files/<slide_id>.pt` of every slide with patches; resumes by slide.

    Slides that are done are not embedded again, but with `overwrite`, or when their patches have changed.

    Returns:
        The numbers of slides and patches, and the width of the activations.

    Raises:
        FileNotFoundError: when there are no patch files, or a slide of one is missing.
    """
    patches_dir, features_dir = Path(cfg.dataset.patches_dir), Path(cfg.dataset.features_dir)
    patch_files = list_files(patches_dir / "patches", "*.h5")
    if not patch_files:
        raise FileNotFoundError(f"Expected patch files in {patches_dir / 'patches'}, found none. Run task=tile.")
    inputs = CurrentInputs(cfg).read("weights", "slides cut", "patches all")
    rundir.record(*inputs)
    slides = {Path(one.name).stem: one.digest for one in inputs if one.what == "slides cut"}
    backbone = open_backbone(cfg)
    configured = backbone.spec()
    embedder = PatchEmbedder(backbone, cfg.embed.batch_size)
    for folder in ("h5_files", "pt_files"):
        remove_leftovers(features_dir / folder)
    counts: dict[str, int] = {}
    with keeping(
        lambda: f"{len(counts)} of {len(patch_files)} slides embedded" if counts and not cfg.overwrite else ""
    ):
        for path in track(patch_files, "Embedding slides"):
            coords, size_level0, side = read_patch_file(path)
            h5_path = features_dir / "h5_files" / path.name
            spec = replace(configured, patch_size=str(side), mpp=read_scale(path))
            slide = slides.get(path.stem, "")
            if cfg.overwrite or not _is_done(h5_path, coords, spec, slide, rundir.replaces):
                slide_path = find_slide(cfg.dataset.slides_dir, path.stem)
                features = embedder.embed(partial(read_patches, slide_path, size_level0=size_level0, side=side), coords)
                stated = {"patch_size_level0": size_level0, "name": path.stem, "spec": spec.to_json(), "slide": slide}
                _write_features(features_dir, features, coords, stated)
            counts[path.stem] = len(coords)
    table = pd.DataFrame(counts.items(), columns=["slide_id", "n_patches"])
    rundir.add_table("embedded", table, "Patches by slide.", 0)
    n_rows = sum(counts.values())
    paragraphs = [
        f"{backbone.description}: {backbone.d_in()} activations for each of {n_rows:,} patches. "
        f"Preprocessing: {backbone.transform}.",
        "Real weights: backbone=uni backbone.checkpoint=<file>, or any other of conf/backbone; "
        "a timm model needs a YAML with its model_name and nothing else.",
    ]
    rundir.write_page(Page("Backbone", paragraphs))
    return {"n_slides": len(counts), "n_patches": n_rows, "d_in": backbone.d_in()}


def _is_done(path: Path, coords: np.ndarray, spec: ActivationSpec, slide: str, may_replace: bool) -> bool:
    """Whether a slide's file is there, of this spec, this slide and these patches.

    Args:
        path: the file.
        coords: of the patches.
        spec: of the activations that are to be made.
        slide: digest of the slide.
        may_replace: whether activations of another spec are made again, being this run's own of before.

    Raises:
        ValueError: when the folder holds activations of another spec; prints both.
    """
    if not path.is_file():
        return False
    with h5py.File(path, "r") as file:
        embedded: Any = file["coords"]
        found = ActivationSpec.from_json(file.attrs.get("spec"))
        is_same = np.array_equal(embedded, coords) and file.attrs.get("slide") == slide
    if found != spec and not may_replace:
        raise ValueError(
            f"Expected {path} to hold activations of this configuration, got others:\n  here: {spec}\n"
            f"  there: {found}\nGive another dataset.features_dir, or overwrite=true to embed the slides again."
        )
    return is_same and found == spec


def _write_features(folder: Path, features: np.ndarray, coords: np.ndarray, attributes: dict[str, Any]) -> None:
    """Writes the pt file and then the h5 file, which is the sign that the slide is done."""
    n_bytes = features.nbytes + coords.nbytes
    pt_path, h5_path = (folder / f"{kind}_files" / f"{attributes['name']}.{kind}" for kind in ("pt", "h5"))
    # Given a path, torch.save would note its random name inside: equal features have equal bytes.
    with write_atomically(pt_path, n_bytes) as temporary, open(temporary, "wb") as opened:
        torch.save(torch.from_numpy(features), opened)
    with write_atomically(h5_path, n_bytes) as temporary, h5py.File(temporary, "w") as file:
        n_rows, width = features.shape
        chunk = min(_CHUNK_ROWS, n_rows)
        file.create_dataset("features", data=features, chunks=(chunk, width), maxshape=(None, width))
        file.create_dataset("coords", data=coords.astype(np.int32), chunks=(chunk, 2), maxshape=(None, 2))
        file.attrs.update(attributes)
