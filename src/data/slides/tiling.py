"""What a way of cutting slides into patches gives, whichever it is; `conf/tile/` has one file for each."""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from src.data.slides.outlines import Piece
from src.data.slides.patching import PatchGrid

CLAM_COLUMNS = (
    *("seg_level", "sthresh", "mthresh", "close", "use_otsu", "keep_ids", "exclude_ids", "a_t", "a_h", "max_n_holes"),
    *("vis_level", "line_thickness", "use_padding", "contour_fn"),
)
"""Of CLAM's `process_list_autogen.csv`: how a slide was segmented."""


@dataclass(frozen=True)
class Cut:
    """A slide that was cut.

    Attributes:
        coords: top-left corners (x, y) of the patches in level-0 pixels, int64 [n_patches, 2].
        grid: their size.
        view: the whole slide in small, RGB uint8 [height, width, 3].
        pieces: the tissue, in level-0 pixels.
        line_width: of its outline drawn on the view, in pixels.
        reason: what to say of the slide when there are no patches.
        columns: what CLAM's list says of the slide, those of `CLAM_COLUMNS` that mean something here.
    """

    coords: np.ndarray
    grid: PatchGrid
    view: np.ndarray
    pieces: Sequence[Piece]
    line_width: int
    reason: str = ""
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Tiling(ABC):
    """A way to cut slides.

    Attributes:
        patch_size: edge of a patch in pixels.
        patch_level: the slide's level that patches are read from.
        step: distance between patches in the same pixels; None: `patch_size`, no overlap.
        n_workers: processes that cut slides side by side.
    """

    patch_size: int = 256
    patch_level: int = 0
    step: int | None = None
    n_workers: int = 2

    @abstractmethod
    def cut(self, slide: Any) -> Cut:
        """Finds the tissue of a slide and cuts it into patches, perhaps none.

        Args:
            slide: open in OpenSlide.

        Raises:
            ValueError: when the slide cannot be cut so; says why.
        """

    def settings(self) -> str:
        """Returns what decides which patches are cut, as JSON; patch files state it."""
        options = asdict(self)
        del options["n_workers"]
        return json.dumps({"method": type(self).__name__} | options)
