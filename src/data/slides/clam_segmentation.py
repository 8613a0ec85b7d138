"""Tissue as CLAM finds it: by the saturation of a small image of the slide, with filters by area.

Lu et al., "Data-efficient and weakly supervised computational pathology on whole-slide images", Nature Biomedical
Engineering 2021, and the options of its program `create_patches_fp.py`.
"""

from collections.abc import Sequence

import numpy as np

from src.data.slides.outlines import Piece, import_cv2, trace

# CLAM's unit of areas: the square of this many level-0 pixels.
_REFERENCE_EDGE = 512
_WHITE = 255


def tissue_mask(image: np.ndarray, sthresh: int, mthresh: int, close: int, use_otsu: bool) -> np.ndarray:
    """Returns where there is tissue: median filter and threshold of the saturation of HSV, then a closing.

    Args:
        image: RGB uint8 [H, W, 3].
        sthresh: tissue is what is above, 0 to 255; without effect with `use_otsu`.
        mthresh: edge of the median filter in pixels, odd.
        close: edge of the square that closes gaps; 0 for none.
        use_otsu: whether the threshold is Otsu's.

    Returns:
        uint8 [H, W], 255 where there is tissue.
    """
    cv2 = import_cv2()
    saturation = cv2.medianBlur(cv2.cvtColor(image, cv2.COLOR_RGB2HSV)[:, :, 1], mthresh)
    mode = cv2.THRESH_BINARY + (cv2.THRESH_OTSU if use_otsu else 0)
    _, mask = cv2.threshold(saturation, 0 if use_otsu else sthresh, _WHITE, mode)
    return cv2.morphologyEx(mask, cv2.MORPH_CLOSE, np.ones((close, close), np.uint8)) if close else mask


def find_pieces(
    mask: np.ndarray, downsamples: tuple[float, float], a_t: float, a_h: float, max_n_holes: int
) -> list[Piece]:
    """Traces the pieces of tissue that are large enough, with their largest holes.

    Areas are those of OpenCV's polygons through the middle of border pixels, as in CLAM.

    Args:
        mask: uint8 [H, W].
        downsamples: level-0 pixels a pixel of the mask, along x and y.
        a_t: a piece is kept when its area without holes is above this many squares of 512 level-0 pixels.
        a_h: likewise for a hole.
        max_n_holes: of a piece, the largest ones.

    Returns:
        The pieces in level-0 pixels, fractions cut off.
    """
    area = import_cv2().contourArea
    unit = int(_REFERENCE_EDGE**2 / (downsamples[0] * downsamples[1]))
    found = []
    for piece in trace(mask):
        # CLAM leaves out what has no area before it compares.
        size = area(piece.outline) - sum(area(hole) for hole in piece.holes)
        if size == 0 or size <= a_t * unit:
            continue
        largest = sorted(piece.holes, key=area, reverse=True)[:max_n_holes]
        kept = Piece(piece.outline, [hole for hole in largest if area(hole) > a_h * unit])
        found.append(kept.scaled(*downsamples))
    return found


def choose(pieces: Sequence[Piece], keep_ids: Sequence[int], exclude_ids: Sequence[int]) -> list[Piece]:
    """Returns the pieces with the ids in `keep_ids` (all where it is empty), without those in `exclude_ids`.

    A piece's id is its place. The order is that of the ids; CLAM's, which goes through a set, is that of chance.
    """
    ids = set(keep_ids or range(len(pieces))) - set(exclude_ids)
    return [piece for index, piece in enumerate(pieces) if index in ids]
