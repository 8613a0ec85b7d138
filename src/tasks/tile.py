"""Finds the tissue of every slide and cuts it into patches, in CLAM's layout."""

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from src import config
from src.analysis.tissue_figure import plot_patches
from src.data.current_inputs import CurrentInputs
from src.data.slides.cut_images import draw_mask, draw_stitch
from src.data.slides.patching import read_columns, read_patch_file, read_settings, write_patch_file
from src.data.slides.process_list import SlideEntry, write_process_list
from src.data.slides.slide_files import SlideImages, list_slides, open_slide
from src.data.slides.tiling import Tiling
from src.files import list_files, remove_leftovers, write_atomically
from src.interrupts import keeping
from src.progress import track
from src.report.page import Page
from src.runs.rundir import RunDir
from src.worker_processes import worker_pool

_LOGGER = logging.getLogger(__name__)
_N_DRAWN = 6
_THUMBNAIL_SIDE = 600
_MOST_TOLD = 5


def missing_inputs(cfg: Any, kinds: Sequence[str] = ("slides",)) -> list[str]:
    """Returns why there are no slides to cut, or none of other kinds of files; of several reasons the first."""
    folders = {kind: cfg.dataset[f"{kind}_dir"] for kind in kinds if cfg.dataset.get("generator") is None}
    missing = (kind for kind, folder in folders.items() if folder is None or not Path(folder).is_dir())
    reasons = [f"no {kind}: dataset.{kind}_dir is {folders[kind]}" for kind in missing]
    if "patches" not in kinds and _is_foreign(cfg.dataset.patches_dir):
        reasons.append(f"another program cut the slides: dataset.patches_dir is {cfg.dataset.patches_dir}")
    return reasons[:1]


def _is_foreign(out_dir: str | None) -> bool:
    """Whether patch files are there that do not state how they were cut, as CLAM's do not."""
    files = [] if out_dir is None else list_files(Path(out_dir) / "patches", "*.h5")
    return any(not read_settings(path) for path in files[:1])


def run(cfg: Any, rundir: RunDir) -> dict[str, float]:
    """Writes `patches/<slide_id>.h5`, `masks/` and `stitches/<slide_id>.jpg` and `process_list_autogen.csv`.

    They lie below `patches_dir`, as CLAM has them. The list is written anew after every slide. A slide that gives no
    patches is listed with its reason, and the others are cut all the same. Slides whose patch file is there are not
    read again, but with `overwrite`.

    Returns:
        The numbers of slides, of patches and of slides without patches.

    Raises:
        ValueError: when slides gave no patches, and bad files are errors, after all others were cut; when `patches_dir`
            holds patches of other settings.
    """
    if cfg.dataset.get("generator") is not None:
        remove_leftovers(Path(cfg.dataset.dir), recursive=True)  # half a slide is none
        config.instantiate(cfg.dataset.generator, out_dir=cfg.dataset.dir)
    slides = list_slides(cfg.dataset.slides_dir)
    rundir.record(*CurrentInputs(cfg).read("generator", "slides all"))
    out_dir = Path(cfg.dataset.patches_dir)
    if _is_foreign(cfg.dataset.patches_dir) and not cfg.overwrite:
        raise ValueError(
            f"Expected no patches of another program in {out_dir}, got some, which would be mixed with these. Give "
            "another dataset.patches_dir, or overwrite=true to replace them."
        )
    for folder in (out_dir, *(out_dir / name for name in ("patches", "masks", "stitches"))):
        folder.mkdir(parents=True, exist_ok=True)  # here, and not by whichever worker comes first
        remove_leftovers(folder)
    entries = _cut_slides(cfg, slides, out_dir)
    failed = {slide_id: entry.reason for slide_id, entry in entries.items() if not entry.n_patches}
    for slide_id, reason in failed.items():
        _LOGGER.warning("Skipped slide %s: %s", slide_id, reason)
    if failed and cfg.dataset.on_bad_file == "error":
        told = [f"{slides[slide_id].name}: {reason.rstrip('.')}" for slide_id, reason in failed.items()][:_MOST_TOLD]
        raise ValueError(
            f"Expected patches of every slide in {cfg.dataset.slides_dir}, got none of {len(failed)}, listed in "
            f"{out_dir / 'process_list_autogen.csv'}: {'; '.join(told)}. Look at {out_dir / 'masks'}, change "
            "tile.*, or set dataset.on_bad_file=skip; the other slides are cut."
        )
    results: dict[str, float] = {
        "n_slides": len(slides) - len(failed),
        "n_patches": sum(entry.n_patches or 0 for entry in entries.values()),
        "n_failed": len(failed),
    }
    _write_page(rundir, slides, entries, out_dir, results)
    return results


def _cut_slides(cfg: Any, slides: Mapping[str, Path], out_dir: Path) -> dict[str, SlideEntry]:
    """Cuts all slides, and lists them after every one."""
    tiling: Tiling = config.instantiate(cfg.tile)
    cut = partial(cut_slide, out_dir=out_dir, tiling=tiling, overwrite=cfg.overwrite)
    names = [path.name for path in slides.values()]
    entries: dict[str, SlideEntry] = {}
    with keeping(lambda: _describe_kept(cfg, slides)), worker_pool(tiling.n_workers) as pool:
        done = track(pool.map(cut, slides.values()), "Cutting slides", len(slides))
        for name, (entry, is_new) in zip(names, done, strict=True):
            entries[name] = entry
            if is_new:  # thousands of slides that were cut before are listed at the end
                write_process_list(out_dir, names, entries)
    write_process_list(out_dir, names, entries)
    return dict(zip(slides, entries.values(), strict=True))


def _describe_kept(cfg: Any, slides: Mapping[str, Path]) -> str:
    """Says how many slides a next start finds cut; with `overwrite` it cuts all again."""
    n_done = sum(_patch_path(Path(cfg.dataset.patches_dir), slide_id).is_file() for slide_id in slides)
    return f"{n_done} of {len(slides)} slides cut" if n_done and not cfg.overwrite else ""


def _patch_path(out_dir: Path, slide_id: str) -> Path:
    return out_dir / "patches" / f"{slide_id}.h5"


def cut_slide(path: Path, out_dir: Path, tiling: Tiling, overwrite: bool) -> tuple[SlideEntry, bool]:
    """Returns what became of a slide, and whether it was cut now."""
    patch_path = _patch_path(out_dir, path.stem)
    if patch_path.is_file():
        if not overwrite:
            return _kept(patch_path, tiling), False
        patch_path.unlink()  # it may give none now
    try:
        with open_slide(path) as slide:
            cut = tiling.cut(slide)
            pictures = {"masks": draw_mask(cut, slide.dimensions), "stitches": draw_stitch(cut, slide.dimensions)}
            for folder, picture in pictures.items():
                with write_atomically(out_dir / folder / f"{path.stem}.jpg") as temporary:
                    Image.fromarray(picture).save(temporary)
            if not len(cut.coords):
                return SlideEntry(0, cut.reason, cut.columns), True
            write_patch_file(patch_path, cut.coords, cut.grid, slide, tiling.settings(), cut.columns)
    except ValueError as error:
        return SlideEntry(0, str(error)), True
    return SlideEntry(len(cut.coords), "", cut.columns), True


def _kept(patch_path: Path, tiling: Tiling) -> SlideEntry:
    coords, _, _ = read_patch_file(patch_path)
    made_with = read_settings(patch_path)
    if made_with != tiling.settings():
        raise ValueError(
            f"Expected {patch_path} to be cut with {tiling.settings()}, got {made_with or 'no word of it'}. "
            "Give another dataset.patches_dir and dataset.features_dir, or overwrite=true to cut the slides again."
        )
    return SlideEntry(len(coords), "", read_columns(patch_path))


def _write_page(
    rundir: RunDir,
    slides: Mapping[str, Path],
    entries: Mapping[str, SlideEntry],
    out_dir: Path,
    results: Mapping[str, float],
) -> None:
    rows = [(slide_id, entry.n_patches, entry.reason) for slide_id, entry in entries.items()]
    table = pd.DataFrame(rows, columns=["slide_id", "n_patches", "reason"])
    rundir.add_table("patches", table, "Patches by slide, and why there are none.", 10)
    cut = [slide_id for slide_id, entry in entries.items() if entry.n_patches]
    drawn = [cut[index] for index in np.linspace(0, len(cut) - 1, min(_N_DRAWN, len(cut))).astype(int)]
    panels = []
    for slide_id in drawn:
        coords, size_level0, _ = read_patch_file(_patch_path(out_dir, slide_id))
        with open_slide(slides[slide_id]) as slide:
            thumbnail = SlideImages(slide).thumbnail(_THUMBNAIL_SIDE)
            scale = thumbnail.shape[1] / slide.dimensions[0]
        panels.append((slide_id, thumbnail, coords * scale, size_level0 * scale))
    if panels:
        rundir.add_figure("patches", plot_patches(panels), "Slides and the patches that were kept.")
    text = (
        f"{results['n_patches']:,} patches of {results['n_slides']} slides hold enough tissue, found by its "
        f"saturation. {results['n_failed']} slides gave none."
    )
    rundir.write_page(Page("Slides and patches", [text]))
