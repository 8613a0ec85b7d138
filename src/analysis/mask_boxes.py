"""Boxes around masks, and how well boxes and masks agree. Boxes are (x1, y1, x2, y2) in pixels, x2 and y2 excluded."""

from collections.abc import Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

from src.data.slides.outlines import import_cv2

MIN_AREA = 10
"""The least area of a box around a contour, in square pixels: Mammo-SAE's."""


def contour_boxes(mask: np.ndarray, min_area: int = MIN_AREA) -> np.ndarray:
    """Returns the boxes around the connected parts of a mask.

    They are the bounding rectangles of OpenCV's external contours, as in Mammo-SAE: parts that touch at a corner are
    one, and what lies in a hole of another part is not counted.

    Args:
        mask: bool [height, width].
        min_area: smaller boxes are left out.

    Returns:
        [n, 4] int64, sorted.
    """
    cv2 = import_cv2()
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    corners = [cv2.boundingRect(contour) for contour in contours]
    boxes = [(x, y, x + width, y + height) for x, y, width, height in corners if width * height >= min_area]
    return np.array(sorted(boxes), np.int64).reshape(-1, 4)


def clip_boxes(boxes: np.ndarray, height: int, width: int, source: str = "the image") -> np.ndarray:
    """Returns boxes [n, 4] cut at the edges of their image.

    Raises:
        ValueError: when a box lies wholly outside.
    """
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    clipped = np.clip(boxes, 0, [width, height, width, height])
    outside = (clipped[:, 2] <= clipped[:, 0]) | (clipped[:, 3] <= clipped[:, 1])
    if outside.any():
        raise ValueError(
            f"Expected boxes within {source} of {width}x{height} pixels, got {boxes[outside][0].tolist()}: correct the "
            "csv of the boxes, whose edges are pixels of the image as it is stored."
        )
    return clipped


def fill_boxes(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Returns where boxes [n, 4] are, bool [height, width]: the pixels whose centres lie within one."""
    mask = np.zeros((height, width), bool)
    for left, top, right, bottom in np.ceil(np.asarray(boxes, np.float64) - 0.5).astype(int).tolist():
        mask[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = True
    return mask


def box_ious(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Returns the intersection over union of each of `boxes` [n, 4] with each of `others` [m, 4]: [n, m] float64."""
    one, other = np.asarray(boxes, np.float64)[:, None], np.asarray(others, np.float64)[None]
    sides = np.minimum(one[..., 2:], other[..., 2:]) - np.maximum(one[..., :2], other[..., :2])
    common = np.maximum(sides, 0).prod(-1)
    areas = [(both[..., 2:] - both[..., :2]).prod(-1) for both in (one, other)]
    return common / (areas[0] + areas[1] - common)


def match_boxes(true: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Returns for each true box [n, 4] its IoU with the predicted box [m, 4] matched to it, 0 where none is left.

    Each predicted box is matched to one true box at most, so that the sum of IoUs is largest (Hungarian method): a box
    around everything finds one object and not all.
    """
    ious = box_ious(true, predicted)
    matched = np.zeros(len(true))
    rows, columns = linear_sum_assignment(ious, maximize=True)
    matched[rows] = ious[rows, columns]
    return matched


def mask_iou(mask: np.ndarray, other: np.ndarray) -> float:
    """Returns the intersection over union of two masks [height, width]; 0 when both are empty."""
    union = np.count_nonzero(mask | other)
    return np.count_nonzero(mask & other) / union if union else 0.0


def contains(boxes: np.ndarray, point: Sequence[float] | np.ndarray) -> bool:
    """Whether a point (x, y) lies in one of the boxes [n, 4]: a hit of the pointing game.

    J. Zhang et al., "Top-down Neural Attention by Excitation Backprop", ECCV 2016; without its margin of 15 pixels.
    """
    x, y = point
    inside = (boxes[:, 0] <= x) & (x < boxes[:, 2]) & (boxes[:, 1] <= y) & (y < boxes[:, 3])
    return bool(inside.any())
