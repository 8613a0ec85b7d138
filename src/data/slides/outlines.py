"""Pieces of tissue as outlines with holes, traced from a mask."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Piece:
    """A piece of tissue.

    Attributes:
        outline: its border, int32 [n_points, 1, 2] (x, y), as OpenCV has contours.
        holes: the borders of its holes, in the same form.
    """

    outline: np.ndarray
    holes: Sequence[np.ndarray] = ()

    def scaled(self, scale_x: float, scale_y: float) -> "Piece":
        """Returns the piece in an image of another size; fractions are cut off, as CLAM does."""
        scale = (scale_x, scale_y)
        return Piece((self.outline * scale).astype(np.int32), [(hole * scale).astype(np.int32) for hole in self.holes])


def trace(mask: np.ndarray) -> list[Piece]:
    """Traces the pieces of a mask; what lies in a hole is a piece of its own.

    Args:
        mask: bool or uint8 [H, W]; what is not 0 is tissue.

    Returns:
        The pieces in pixels of the mask, every border pixel a point, in OpenCV's order.
    """
    contours, hierarchy = import_cv2().findContours(mask.astype(np.uint8), *_contour_modes())
    if not contours:
        return []
    parents = hierarchy[0][:, 3]  # two levels (RETR_CCOMP): outlines have no parent, holes have their outline
    holes: dict[int, list[np.ndarray]] = {}
    for contour, parent in zip(contours, parents, strict=True):
        if parent >= 0:
            holes.setdefault(int(parent), []).append(contour)
    return [Piece(contours[index], holes.get(index, ())) for index in range(len(contours)) if parents[index] < 0]


def import_cv2() -> Any:
    """Returns OpenCV.

    Raises:
        ImportError: when it is not installed; says how to install it.
    """
    try:
        import cv2
    except ImportError as error:
        raise ImportError(
            "Expected OpenCV to trace outlines, found it not installed: pip install opencv-python-headless "
            "(the extra `wsi`)."
        ) from error
    return cv2


def _contour_modes() -> tuple[int, int]:
    cv2 = import_cv2()
    return cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE
