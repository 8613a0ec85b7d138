"""Finds the tissue of every slide and cuts it into patches, in CLAM's layout."""

import json
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from src import config
from src.analysis.tissue_figure import plot_patches
from src.data.current_inputs import CurrentInputs
from src.data.slides.patching import find_patches, plan_grid, read_patch_file, read_settings, write_patch_file
from src.data.slides.slide_files import SlideImages, list_slides, open_slide
from src.data.slides.tissue import find_tissue
from src.files import remove_leftovers, write_atomically
from src.interrupts import keeping
from src.progress import track
from src.report.page import Page
from src.runs.rundir import RunDir
from src.worker_processes import worker_pool

_LOGGER = logging.getLogger(__name__)
_N_DRAWN = 6
# The options that decide what is cut; patch files state them.
_OPTIONS = ("patch_size", "patch_level", "step", "mpp", "min_tissue", "saturation_threshold")
# A patch spans at least this many pixels of the image that tissue is looked for in.
_PIXELS_PER_PATCH = 8
_THUMBNAIL_SIDE = 600


def missing_inputs(cfg: Any, kinds: Sequence[str] = ("slides",)) -> list[str]:
    """Returns why there are no slides to cut, or none of other kinds of files; of several reasons the first."""
    folders = {kind: cfg.dataset[f"{kind}_dir"] for kind in kinds if cfg.dataset.get("generator") is None}
    missing = (kind for kind, folder in folders.items() if folder is None or not Path(folder).is_dir())
    return [f"no {kind}: dataset.{kind}_dir is {folders[kind]}" for kind in missing][:1]


def run(cfg: Any, rundir: RunDir) -> dict[str, float]:
    """Writes `patches/<slide_id>.h5`, `masks/<slide_id>.jpg` and `process_list_autogen.csv` below `patches_dir`.

    Slides whose patch file is there are not read again, but with `overwrite`.

    Returns:
        The numbers of slides, of patches and of slides without tissue.

    Raises:
        ValueError: when a slide has no tissue patch or cannot be read, and bad files are errors; when `patches_dir`
            holds patches of other settings.
    """
    if cfg.dataset.get("generator") is not None:
        remove_leftovers(Path(cfg.dataset.dir), recursive=True)  # half a slide is none
        config.instantiate(cfg.dataset.generator, out_dir=cfg.dataset.dir)
    slides = list_slides(cfg.dataset.slides_dir)
    rundir.record(*CurrentInputs(cfg).read("generator", "slides all"))
    out_dir = Path(cfg.dataset.patches_dir)
    tile = cfg.tile
    tiling = {name: tile[name] for name in _OPTIONS}  # plain values, which a worker process can be handed
    cut = partial(_tile_slide, out_dir=out_dir, tiling=tiling, overwrite=cfg.overwrite)
    for folder in (out_dir, out_dir / "patches", out_dir / "masks"):
        remove_leftovers(folder)
    with keeping(lambda: _describe_kept(cfg, slides)), worker_pool(tile.n_workers) as pool:
        done = track(pool.map(cut, slides.values()), "Cutting slides", len(slides))
        counts = dict(zip(slides, done, strict=True))
    failed = {slide_id: count for slide_id, count in counts.items() if isinstance(count, str)}
    for slide_id, reason in failed.items():
        if cfg.dataset.on_bad_file == "error":
            raise ValueError(
                f"Expected tissue on slide {slides[slide_id]}, got {reason}. Look at {out_dir / 'masks'}, lower "
                "tile.min_tissue or tile.saturation_threshold, or set dataset.on_bad_file=skip."
            )
        _LOGGER.warning("Skipped slide %s: %s", slide_id, reason)
    _write_process_list(out_dir, slides, counts, tiling)
    results: dict[str, float] = {
        "n_slides": len(slides) - len(failed),
        "n_patches": sum(count for count in counts.values() if isinstance(count, int)),
        "n_failed": len(failed),
    }
    _write_page(rundir, slides, counts, out_dir, results)
    return results


def _describe_kept(cfg: Any, slides: dict[str, Path]) -> str:
    """Says how many slides a next start finds cut; with `overwrite` it cuts all again."""
    n_done = sum(_patch_path(Path(cfg.dataset.patches_dir), slide_id).is_file() for slide_id in slides)
    return f"{n_done} of {len(slides)} slides cut" if n_done and not cfg.overwrite else ""


def _patch_path(out_dir: Path, slide_id: str) -> Path:
    return out_dir / "patches" / f"{slide_id}.h5"


def _tile_slide(path: Path, out_dir: Path, tiling: dict[str, Any], overwrite: bool) -> int | str:
    """Returns the number of patches of a slide, or why there are none."""
    patch_path = _patch_path(out_dir, path.stem)
    if patch_path.is_file() and not overwrite:
        return _count(patch_path, tiling)
    try:
        with open_slide(path) as slide:
            grid = plan_grid(slide, *(tiling[name] for name in _OPTIONS[:4]))
            side = int(np.ceil(max(slide.dimensions) / grid.size_level0 * _PIXELS_PER_PATCH))
            image = SlideImages(slide).thumbnail(max(side, _THUMBNAIL_SIDE))
            tissue = find_tissue(image, tiling["saturation_threshold"])
            coords = find_patches(tissue, slide.dimensions, grid, tiling["min_tissue"])
            with write_atomically(out_dir / "masks" / f"{path.stem}.jpg") as temporary:
                Image.fromarray(np.where(tissue[..., None], image, 255 - (255 - image) // 4)).save(temporary)
            if not len(coords):
                return "no patch with enough tissue"
            write_patch_file(patch_path, coords, grid, slide, json.dumps(tiling))
    except ValueError as error:
        return str(error)
    return len(coords)


def _count(patch_path: Path, tiling: dict[str, Any]) -> int:
    coords, _, patch_size = read_patch_file(patch_path)
    made_with, settings = read_settings(patch_path), json.dumps(tiling)
    if patch_size != tiling["patch_size"] or made_with not in ("", settings):
        raise ValueError(
            f"Expected {patch_path} to be cut with {settings}, got {made_with or f'{patch_size} px'}. "
            "Give another dataset.patches_dir and dataset.features_dir, or overwrite=true to cut the slides again."
        )
    return len(coords)


def _write_process_list(
    out_dir: Path, slides: dict[str, Path], counts: dict[str, int | str], tiling: dict[str, Any]
) -> None:
    """Writes CLAM's list of slides, with the columns that mean something here."""
    is_cut = [isinstance(count, int) for count in counts.values()]
    columns = {
        "slide_id": [path.name for path in slides.values()],
        "process": 0,
        "status": np.where(is_cut, "processed", "failed_seg"),
        "use_otsu": tiling["saturation_threshold"] is None,
        "patch_level": tiling["patch_level"],
        "patch_size": tiling["patch_size"],
        "n_patches": [count if isinstance(count, int) else 0 for count in counts.values()],
    }
    with write_atomically(out_dir / "process_list_autogen.csv") as temporary:
        pd.DataFrame(columns).to_csv(temporary, index=False)


def _write_page(
    rundir: RunDir, slides: dict[str, Path], counts: dict[str, int | str], out_dir: Path, results: dict[str, float]
) -> None:
    table = pd.DataFrame({"slide_id": list(counts), "n_patches": list(counts.values())})
    rundir.add_table("patches", table, "Patches by slide.", 10)
    cut = [slide_id for slide_id, count in counts.items() if isinstance(count, int)]
    drawn = [cut[index] for index in np.linspace(0, len(cut) - 1, min(_N_DRAWN, len(cut))).astype(int)]
    panels = []
    for slide_id in drawn:
        coords, size_level0, _ = read_patch_file(_patch_path(out_dir, slide_id))
        with open_slide(slides[slide_id]) as slide:
            thumbnail = SlideImages(slide).thumbnail(_THUMBNAIL_SIDE)
            scale = thumbnail.shape[1] / slide.dimensions[0]
        panels.append((slide_id, thumbnail, coords * scale, size_level0 * scale))
    rundir.add_figure("patches", plot_patches(panels), "Slides and the patches that were kept.")
    text = (
        f"{results['n_patches']:,} patches of {results['n_slides']} slides hold enough tissue, found by its "
        f"saturation. {results['n_failed']} slides gave none."
    )
    rundir.write_page(Page("Slides and patches", [text]))
