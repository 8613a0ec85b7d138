"""Cuts the tissue of a slide into patches and keeps their coordinates in CLAM's layout."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import h5py
import numpy as np

from src.activation_spec import UNKNOWN
from src.data.readers.h5_files import RECUT, open_h5, patch_size_level0, read_patch_coords
from src.data.slides.slide_files import stated_mpp
from src.files import write_atomically
from src.models.backbones.spec import describe_scale


@dataclass(frozen=True)
class PatchGrid:
    """How a slide is cut.

    Attributes:
        patch_size: edge of a patch in pixels of its level.
        level: the slide's level that patches are read from.
        size_level0: edge of a patch in level-0 pixels.
        step_level0: distance between patches in level-0 pixels.
    """

    patch_size: int
    level: int
    size_level0: int
    step_level0: int


def plan_grid(slide: Any, patch_size: int, level: int, step: int | None, mpp: float | None) -> PatchGrid:
    """Works out the edge of a patch in level-0 pixels.

    Args:
        slide: open in OpenSlide.
        patch_size: edge in pixels, at `level` or at `mpp`.
        level: the level to read from; without effect when `mpp` is given.
        step: distance between patches in the same pixels; `patch_size` when None.
        mpp: micrometres a pixel that the patches shall have; None takes the level as it is.

    Raises:
        ValueError: when the slide has no such level, or does not state its resolution and `mpp` is given.
    """
    step = patch_size if step is None else step
    if mpp is None:
        require_level(slide, level)
        factor = float(slide.level_downsamples[level])
    else:
        stated = stated_mpp(slide)
        if stated is None:
            raise ValueError(
                "Expected the slide to state its resolution (openslide.mpp-x), as tile.mpp needs, got none: "
                "give tile.patch_level and tile.mpp=null instead."
            )
        factor = mpp / stated
        level = slide.get_best_level_for_downsample(max(factor, 1.0) + 1e-3)
    return PatchGrid(patch_size, level, max(1, round(patch_size * factor)), max(1, round(step * factor)))


def require_level(slide: Any, level: int) -> None:
    """Refuses a level that a slide does not have.

    Raises:
        ValueError: saying how many it has.
    """
    if level >= slide.level_count:
        raise ValueError(
            f"Expected tile.patch_level below the slide's {slide.level_count} levels, got {level}: give a lower "
            "level, or tile.mpp=<micrometres a pixel>."
        )


def level_downsample(slide: Any, level: int) -> tuple[float, float]:
    """Returns the level-0 pixels a pixel of a level along x and y, by the sizes of the levels as CLAM takes them."""
    (width, height), (level_width, level_height) = slide.dimensions, slide.level_dimensions[level]
    return width / level_width, height / level_height


def find_patches(tissue: np.ndarray, size_level0: tuple[int, int], grid: PatchGrid, least_share: float) -> np.ndarray:
    """Returns the patches of a grid from the slide's corner that hold enough tissue.

    One grid for the whole slide, so that patches never overlap across pieces of tissue (CLAM starts one at every
    contour); patches lie within the slide.

    Args:
        tissue: bool [H, W], the whole slide in small.
        size_level0: width and height of the slide at level 0.
        grid: how to cut.
        least_share: of a patch's area that must be tissue, 0 to 1.

    Returns:
        Top-left corners (x, y) in level-0 pixels, int64 [n_patches, 2], column by column as CLAM orders them.
    """
    width, height = size_level0
    xs = np.arange(0, width - grid.size_level0 + 1, grid.step_level0)
    ys = np.arange(0, height - grid.size_level0 + 1, grid.step_level0)
    # A summed-area table gives every patch's tissue in four look-ups.
    table = np.pad(tissue.astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))

    def edges(starts: np.ndarray, scale: float, limit: int) -> tuple[np.ndarray, np.ndarray]:
        low = np.floor(starts * scale).astype(int)
        high = np.ceil((starts + grid.size_level0) * scale).astype(int)
        return low.clip(0, limit - 1), high.clip(1, limit)

    left, right = edges(xs, tissue.shape[1] / width, tissue.shape[1])
    top, bottom = edges(ys, tissue.shape[0] / height, tissue.shape[0])
    sums = (
        table[np.ix_(bottom, right)]
        - table[np.ix_(top, right)]
        - table[np.ix_(bottom, left)]
        + table[np.ix_(top, left)]
    )
    areas = np.outer(bottom - top, right - left)
    # [n_y, n_x] -> x outer, y inner.
    kept_x, kept_y = np.nonzero((sums >= np.maximum(least_share * areas, 1)).T)
    return np.stack([xs[kept_x], ys[kept_y]], axis=1).astype(np.int64)


def write_patch_file(
    path: Path,
    coords: np.ndarray,
    grid: PatchGrid,
    slide: Any,
    settings: str = "",
    columns: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Writes CLAM's patch file: `coords` [n_patches, 2] int64 level-0 corners, with CLAM's attributes and the edge.

    CLAM's readers take the edge as `patch_size * int(downsample)`; `patch_size_level0` (TRIDENT's name) states it.

    Args:
        path: the file.
        coords: of the patches.
        grid: their size.
        slide: open in OpenSlide.
        settings: what the slide was cut with, as JSON of configuration values; `read_settings` gives it back.
        columns: what CLAM's list of slides says of it; `read_columns` gives it back.
    """
    level_size, downsample = slide.level_dimensions[grid.level], level_downsample(slide, grid.level)
    with write_atomically(path) as temporary, h5py.File(temporary, "w") as file:
        file.create_dataset("coords", data=coords).attrs.update(
            {
                # In pixels of the level that is read, which with a target resolution is not the patch's own.
                "patch_size": round(grid.size_level0 / downsample[0]),
                "patch_level": grid.level,
                "downsample": downsample,
                "downsampled_level_dim": level_size,
                "level_dim": level_size,
                "name": path.stem,
                "save_path": str(path.parent),
                "patch_size_level0": grid.size_level0,
                "patch_size_target": grid.patch_size,
            }
        )
        file.attrs.update({"settings": settings, "columns": json.dumps(dict(columns))})


def read_patch_file(path: Path) -> tuple[np.ndarray, int, int]:
    """Returns coords [n_patches, 2], the edge in level-0 pixels and in pixels of the image to make of a patch.

    Raises:
        FileNotFoundError: when there is no such file.
        FeatureFileError: when the file is damaged, or holds no coords.
        ValueError: when the file does not state the edge.
    """
    if not path.exists():
        raise FileNotFoundError(f"Expected a patch file at {path}, found none. Make it with task=tile.")
    coords, attributes = read_patch_coords(path)
    edge = patch_size_level0(attributes)
    if edge is None:
        raise ValueError(
            f"Expected attributes patch_size and downsample on coords of {path}, got {sorted(attributes)}: "
            "the edge of a patch is not known. Make the file again with task=tile."
        )
    return coords, edge, int(attributes.get("patch_size_target", attributes.get("patch_size", edge)))


def read_scale(path: Path) -> str:
    """Returns at which resolution a slide was cut, as `ActivationSpec.mpp` has it; unknown where the file says not."""
    settings = read_settings(path)
    return describe_scale(json.loads(settings)) if settings else UNKNOWN


def read_settings(path: Path) -> str:
    """Returns what a slide was cut with; empty when the file does not say, as CLAM's do not."""
    with open_h5(path, RECUT) as file:
        return str(file.attrs.get("settings", ""))


def read_columns(path: Path) -> dict[str, Any]:
    """Returns what CLAM's list of slides said of a slide when it was cut; empty when the file does not say."""
    with open_h5(path, RECUT) as file:
        return json.loads(file.attrs.get("columns", "{}"))
