"""Cuts slides on one lattice from the slide's corner, without glass, holes, pen marks and blur: the default."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from src.data.slides.focus import drop_blurred
from src.data.slides.outlines import trace
from src.data.slides.patching import find_patches, plan_grid
from src.data.slides.slide_files import SlideImages
from src.data.slides.tiling import Cut, Tiling
from src.data.slides.tissue import LEAST_SATURATION, MEDIAN_SIZE, find_pen, find_tissue

# A patch spans at least this many pixels of the image that tissue is looked for in: with patches of 512 level-0 pixels
# that is CLAM's downsample of 64.
_PIXELS_PER_PATCH = 8
_LEAST_SIDE = 600
_MOST_SIDE = 10_000
# Of the side of that image is the width of the outlines on it.
_LINE = 300


@dataclass(frozen=True, kw_only=True)
class GridTiling(Tiling):
    """One lattice for the whole slide: patches never overlap across pieces of tissue, as CLAM's do.

    Attributes:
        mpp: micrometres a pixel that patches shall have, on slides that state theirs; None: as `patch_level` is.
        min_tissue: least share of a patch that is tissue, 0 to 1. Holes in the tissue are none.
        saturation_threshold: of tissue, 0 to 1; None: Otsu's, per slide.
        pen_contrast: see `find_pen`; pen marks are no tissue. None: pen is not looked for.
        min_sharpness: see `drop_blurred`; None: patches are not read to look for blur.
    """

    mpp: float | None = None
    min_tissue: float = 0.5
    saturation_threshold: float | None = None
    pen_contrast: float | None = 0.1
    min_sharpness: float | None = 100.0

    def cut(self, slide: Any) -> Cut:
        """See `Tiling.cut`."""
        grid = plan_grid(slide, self.patch_size, self.patch_level, self.step, self.mpp)
        if min(slide.dimensions) < grid.size_level0:
            width, height = slide.dimensions
            raise ValueError(
                f"Expected a slide of at least one patch, {grid.size_level0} level-0 pixels, got {width} x {height}: "
                "give a smaller tile.patch_size."
            )
        images = SlideImages(slide)
        side = int(np.ceil(max(slide.dimensions) / grid.size_level0 * _PIXELS_PER_PATCH))
        view = images.thumbnail(min(max(side, _LEAST_SIDE), _MOST_SIDE))
        pen = None if self.pen_contrast is None else find_pen(view, self.pen_contrast)
        tissue = find_tissue(view, self.saturation_threshold, pen=pen)
        coords = find_patches(tissue, slide.dimensions, grid, self.min_tissue)
        reason = f"no patch with enough tissue (tile.min_tissue={self.min_tissue})"
        if self.min_sharpness is not None and len(coords):
            reason = f"all {len(coords)} patches with enough tissue are blurred (tile.min_sharpness)"
            coords = drop_blurred(images, coords, grid, self.min_sharpness)
        scale = (slide.dimensions[0] / view.shape[1], slide.dimensions[1] / view.shape[0])
        line_width = max(1, max(view.shape) // _LINE)
        # In words of CLAM's columns; those that mean nothing here stay empty.
        columns = {
            "sthresh": round((self.saturation_threshold or LEAST_SATURATION) * 255),
            "mthresh": MEDIAN_SIZE,
            "use_otsu": self.saturation_threshold is None,
            "use_padding": False,
        }
        pieces = [piece.scaled(*scale) for piece in trace(tissue)]
        return Cut(coords, grid, view, pieces, line_width, reason, columns)
