"""CLAM's lattice of patches: one for every piece of tissue, from the corner of its bounding box."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np

from src.data.slides.outlines import Piece, import_cv2

ContourTest = Literal["basic", "center", "four_pt", "four_pt_hard"]


def cut_pieces(
    pieces: Sequence[Piece],
    slide_size: tuple[int, int],
    edge: int,
    step: int,
    contour_fn: ContourTest,
    use_padding: bool,
) -> np.ndarray:
    """Returns the patches of all pieces, piece by piece; those of different pieces may overlap.

    Args:
        pieces: in level-0 pixels.
        slide_size: width and height at level 0.
        edge: of a patch in level-0 pixels, as the tests take it.
        step: distance between patches in level-0 pixels.
        contour_fn: see `is_inside`.
        use_padding: whether patches may leave the slide; without, the lattice ends where they would.

    Returns:
        Top-left corners (x, y) in level-0 pixels, int64 [n_patches, 2]; column by column within a piece.
    """
    kept = [
        corner
        for piece in pieces
        for corner in _lattice(piece, slide_size, edge, step, use_padding)
        if is_inside(corner, piece.outline, edge, contour_fn) and not is_in_hole(corner, piece.holes, edge)
    ]
    return np.array(kept, dtype=np.int64).reshape(-1, 2)


def _lattice(
    piece: Piece, slide_size: tuple[int, int], edge: int, step: int, use_padding: bool
) -> Iterator[tuple[int, int]]:
    left, top, width, height = import_cv2().boundingRect(piece.outline)
    right, bottom = left + width, top + height
    if not use_padding:
        right, bottom = min(right, slide_size[0] - edge + 1), min(bottom, slide_size[1] - edge + 1)
    return ((x, y) for x in range(left, right, step) for y in range(top, bottom, step))


def is_inside(corner: tuple[int, int], outline: np.ndarray, edge: int, contour_fn: ContourTest) -> bool:
    """Whether a patch counts as tissue; points on the outline are inside.

    Args:
        corner: of the patch, top left.
        outline: [n_points, 1, 2].
        edge: of the patch.
        contour_fn: `basic`: its corner is inside; `center`: its centre is; `four_pt`: any of the four points half-way
            from the centre to the corners is (CLAM's README says all four; its program takes any); `four_pt_hard`: all
            of them are.
    """
    if contour_fn == "basic":
        return _distance_sign(outline, corner) >= 0
    x, y = corner[0] + edge // 2, corner[1] + edge // 2
    shift = edge // 2 // 2
    if contour_fn == "center" or shift == 0:
        return _distance_sign(outline, (x, y)) >= 0
    points = ((x - shift, y - shift), (x + shift, y + shift), (x + shift, y - shift), (x - shift, y + shift))
    together = any if contour_fn == "four_pt" else all
    return together(_distance_sign(outline, point) >= 0 for point in points)


def is_in_hole(corner: tuple[int, int], holes: Sequence[np.ndarray], edge: int) -> bool:
    """Whether the centre of a patch lies in a hole; its border does not count."""
    center = (corner[0] + edge / 2, corner[1] + edge / 2)
    return any(_distance_sign(hole, center) > 0 for hole in holes)


def _distance_sign(outline: np.ndarray, point: tuple[Any, Any]) -> float:
    """Returns 1 inside, 0 on the outline, -1 outside."""
    return import_cv2().pointPolygonTest(outline, (float(point[0]), float(point[1])), False)
