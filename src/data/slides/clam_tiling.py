"""Cuts slides as CLAM does: its segmentation, its contour tests, its lattice."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from src.data.slides.clam_lattice import ContourTest, cut_pieces
from src.data.slides.clam_segmentation import choose, find_pieces, tissue_mask
from src.data.slides.patching import PatchGrid, level_downsample, require_level
from src.data.slides.tiling import CLAM_COLUMNS, Cut, Tiling

_VIEW_DOWNSAMPLE = 64
_MOST_PIXELS = 10**8


@dataclass(frozen=True, kw_only=True)
class ClamTiling(Tiling):
    """CLAM's `create_patches_fp.py`; the options have the names and the defaults that they have there.

    CLAM cuts the fraction off a level's downsample for its lattice and its tests, and reads patches of `patch_size`
    pixels of the level all the same. So do we, and the patch file states the edge of what is read.

    Attributes:
        seg_level: the level that tissue is looked for in; -1: the one for a downsample of 64.
        sthresh: see `tissue_mask`, as for the next three.
        mthresh: of the median filter.
        close: of the closing.
        use_otsu: whether the threshold is Otsu's.
        a_t: see `find_pieces`, as for the next two.
        a_h: of holes.
        max_n_holes: of a piece.
        keep_ids: see `choose`.
        exclude_ids: likewise.
        vis_level: the level that masks and stitches are drawn on; -1: the one for a downsample of 64.
        line_thickness: of the outline, in level-0 pixels.
        use_padding: whether patches may leave the slide; they are white there when they are embedded, black in CLAM.
        contour_fn: see `is_inside`.
    """

    seg_level: int = -1
    sthresh: int = 8
    mthresh: int = 7
    close: int = 4
    use_otsu: bool = False
    a_t: float = 100
    a_h: float = 16
    max_n_holes: int = 8
    keep_ids: Sequence[int] = ()
    exclude_ids: Sequence[int] = ()
    vis_level: int = -1
    line_thickness: int = 250
    use_padding: bool = True
    contour_fn: ContourTest = "four_pt"

    def cut(self, slide: Any) -> Cut:
        """See `Tiling.cut`; a level of more than 10^8 pixels is refused, as CLAM does."""
        require_level(slide, self.patch_level)
        seg_level, vis_level = _view_level(slide, self.seg_level), _view_level(slide, self.vis_level)
        image = _read_level(slide, seg_level)
        mask = tissue_mask(image, self.sthresh, self.mthresh, self.close, self.use_otsu)
        pieces = find_pieces(mask, level_downsample(slide, seg_level), self.a_t, self.a_h, self.max_n_holes)
        pieces = choose(pieces, self.keep_ids, self.exclude_ids)
        downsample = level_downsample(slide, self.patch_level)[0]
        step = self.patch_size if self.step is None else self.step
        grid = PatchGrid(self.patch_size, self.patch_level, round(self.patch_size * downsample), step * int(downsample))
        edge = self.patch_size * int(downsample)
        coords = cut_pieces(pieces, slide.dimensions, edge, grid.step_level0, self.contour_fn, self.use_padding)
        view = image if vis_level == seg_level else _read_level(slide, vis_level)
        line_width = max(1, int(self.line_thickness / np.sqrt(np.prod(level_downsample(slide, vis_level)))))
        found = asdict(self) | {"seg_level": seg_level, "vis_level": vis_level}
        columns = {name: _spelled(found[name]) for name in CLAM_COLUMNS}
        reason = f"no patch that passes tile.contour_fn={self.contour_fn}"
        if not pieces:
            reason = (
                f"no piece of tissue above tile.a_t={self.a_t:g} squares of 512 pixels, as in CLAM: give tile.a_t=1 or "
                "tile=clam_bwh_biopsy for small pieces"
            )
        return Cut(coords, grid, view, pieces, line_width, reason, columns)


def _view_level(slide: Any, level: int) -> int:
    """Returns the level itself, or instead of -1 the one for a downsample of 64."""
    if level < 0:
        return 0 if slide.level_count == 1 else slide.get_best_level_for_downsample(_VIEW_DOWNSAMPLE)
    require_level(slide, level)
    return level


def _read_level(slide: Any, level: int) -> np.ndarray:
    width, height = slide.level_dimensions[level]
    if width * height > _MOST_PIXELS:
        raise ValueError(
            f"Expected at most {_MOST_PIXELS:,} pixels at level {level}, which tissue is looked for in, got "
            f"{width} x {height}: give a higher tile.seg_level and tile.vis_level, or tile=default."
        )
    return np.asarray(slide.read_region((0, 0), level, (width, height)).convert("RGB"))


def _spelled(value: Any) -> Any:
    """Spells lists of ids as CLAM's csv does."""
    if isinstance(value, list | tuple):
        return ",".join(str(one) for one in value) or "none"
    return value
