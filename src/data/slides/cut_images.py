"""The two pictures that CLAM keeps of a slide it has cut."""

import numpy as np

from src.data.slides.outlines import import_cv2
from src.data.slides.tiling import Cut

_TISSUE_COLOUR, _HOLE_COLOUR = (0, 255, 0), (0, 0, 255)  # as CLAM draws them


def draw_mask(cut: Cut, slide_size: tuple[int, int]) -> np.ndarray:
    """Returns the slide in small with the tissue outlined in green and its holes in blue, RGB uint8 [H, W, 3].

    Args:
        cut: the slide.
        slide_size: its width and height at level 0.
    """
    cv2 = import_cv2()
    image = cut.view.copy()
    for piece in cut.pieces:
        small = piece.scaled(*_scale(cut.view, slide_size))
        cv2.drawContours(image, [small.outline], -1, _TISSUE_COLOUR, cut.line_width)
        cv2.drawContours(image, list(small.holes), -1, _HOLE_COLOUR, cut.line_width)
    return image


def draw_stitch(cut: Cut, slide_size: tuple[int, int]) -> np.ndarray:
    """Returns the patches that were kept on a black ground, RGB uint8 [H, W, 3]; arguments as `draw_mask`."""
    scale = np.array(_scale(cut.view, slide_size))
    image = np.zeros_like(cut.view)
    starts = np.floor(cut.coords * scale).astype(int)
    ends = np.ceil((cut.coords + cut.grid.size_level0) * scale).astype(int)
    for (left, top), (right, bottom) in zip(starts, ends, strict=True):
        image[top:bottom, left:right] = cut.view[top:bottom, left:right]
    return image


def _scale(view: np.ndarray, slide_size: tuple[int, int]) -> tuple[float, float]:
    return view.shape[1] / slide_size[0], view.shape[0] / slide_size[1]
