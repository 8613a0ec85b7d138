"""Pictures of where a neuron fires in an image: a heatmap, and its mask. All pictures are RGB uint8 [H, W, 3]."""

from collections.abc import Iterable
from functools import cache

import matplotlib as mpl
import numpy as np

from src.data.slides.outlines import import_cv2

# As the maps of slides are drawn: light where the neuron is silent, dark where it is strongest, on pale grey.
_COLORMAP = "magma_r"
_OPACITY_SLOPE, _MOST_OPAQUE = 3.0, 217  # of 255: a third of the neuron's maximum is seen in full colour
_OUTLINE, _BOX = (0, 160, 198), (213, 94, 0)
_OUTSIDE = 0.6  # brightness of what lies outside of a mask


def shrink(image: np.ndarray, longest: int) -> np.ndarray:
    """Returns an image of which no side is longer than `longest` pixels; as it is where none is."""
    height, width = image.shape[:2]
    scale = longest / max(height, width)
    if scale >= 1:
        return image
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return import_cv2().resize(image, size, interpolation=import_cv2().INTER_AREA)


def draw_heatmap(image: np.ndarray, strengths: np.ndarray) -> np.ndarray:
    """Returns a pale grey copy of an image with a neuron's strengths in colour.

    Args:
        image: RGB uint8 [H, W, 3].
        strengths: [H, W] from 0 (transparent) to 1 (darkest); what is above 1 is drawn as 1.
    """
    cv2 = import_cv2()
    grey = cv2.convertScaleAbs(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), alpha=115 / 255, beta=140)
    levels = cv2.convertScaleAbs(strengths, alpha=255)
    opacity = cv2.merge([cv2.min(cv2.convertScaleAbs(levels, alpha=_OPACITY_SLOPE), _MOST_OPAQUE)] * 3)
    colors = cv2.LUT(cv2.merge([levels] * 3), _palette())
    pale = cv2.multiply(cv2.merge([grey] * 3), 255 - opacity, scale=1 / 255)
    return cv2.add(pale, cv2.multiply(colors, opacity, scale=1 / 255))


def draw_mask(image: np.ndarray, inside: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Returns one picture within a mask, another darker around it, and the mask's contour.

    Args:
        image: to be seen around the mask, RGB uint8 [H, W, 3].
        inside: to be seen within it, the heatmap for instance; the same size.
        mask: bool [H, W].
    """
    cv2 = import_cv2()
    drawn = cv2.convertScaleAbs(image, alpha=_OUTSIDE)
    return outline_mask(cv2.copyTo(inside, mask.astype(np.uint8), drawn), mask)


def outline_mask(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Returns a copy of an image with the contour of a mask bool [H, W]."""
    cv2 = import_cv2()
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    return cv2.drawContours(image.copy(), contours, -1, _OUTLINE, 1)


def outline_boxes(image: np.ndarray, boxes: Iterable[np.ndarray]) -> np.ndarray:
    """Returns a copy of an image with boxes (x1, y1, x2, y2)."""
    cv2 = import_cv2()
    drawn = image.copy()
    for box in boxes:
        left, top, right, bottom = np.round(box).astype(int).tolist()
        cv2.rectangle(drawn, (left, top), (right - 1, bottom - 1), _BOX, 1)
    return drawn


def encode_png(image: np.ndarray) -> bytes:
    """Returns an RGB image as a PNG file, quickly rather than small."""
    cv2 = import_cv2()
    # Without a search for repeats, of which photographs have few: a fifth faster, and no larger.
    options = [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_HUFFMAN_ONLY]
    done, encoded = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    if not done:
        raise ValueError(f"Expected an RGB image to write as PNG, got an array of shape {image.shape}.")
    return encoded.tobytes()


@cache
def _palette() -> np.ndarray:
    """Returns the RGB colours of 256 strengths, [1, 256, 3] uint8, as OpenCV looks them up."""
    return (mpl.colormaps[_COLORMAP](np.arange(256))[None, :, :3] * 255).round().astype(np.uint8)
