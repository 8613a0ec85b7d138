"""Finds tissue, and pen marks, in a small image of a slide."""

import numpy as np
from scipy import ndimage
from skimage.filters import threshold_otsu

LEAST_SATURATION = 8 / 255
"""CLAM's default threshold. Glass is grey and not quite clean: what is below is never tissue, whatever Otsu makes of a
slide that holds next to none."""
MEDIAN_SIZE = 7
"""Edge of the median filter in pixels, as CLAM's."""
# Black ink reflects less than this, and all colours alike; nuclei, the darkest of tissue, are blue or violet.
_BLACK = 0.3


def saturation(image: np.ndarray) -> np.ndarray:
    """Returns the saturation of HSV, (max - min) / max over the channels of uint8 [H, W, 3]: float32 [H, W] in 0..1."""
    highest = image.max(axis=2).astype(np.float32)
    return (highest - image.min(axis=2)) / np.maximum(highest, 1)


def find_pen(image: np.ndarray, contrast: float) -> np.ndarray:
    """Finds marks of green, blue and black pens by their colour.

    Haematoxylin and eosin both absorb green at least as much as red (Ruifrok and Johnston, "Quantification of
    histochemical staining by color deconvolution", 2001: optical densities of red and green 0.65 and 0.70, 0.07 and
    0.99), and so does every mixture of them, and DAB: what is clearly greener than red is ink. Black ink is dark and
    grey. Red ink has the colour of eosin and stays. With other stains (trichrome, Alcian blue) tissue itself may be
    green or blue: do not look for pen on such slides.

    Args:
        image: RGB uint8 [H, W, 3].
        contrast: by how much of full scale green exceeds red in ink (0 to 1), and by how much at most the channels of
            black ink differ.

    Returns:
        bool [H, W].
    """
    red, green = image[..., 0].astype(np.int16), image[..., 1].astype(np.int16)
    highest, lowest = image.max(axis=2), image.min(axis=2)
    is_black = (highest < _BLACK * 255) & (highest - lowest < contrast * 255)
    return (green - red > contrast * 255) | is_black


def find_tissue(
    image: np.ndarray,
    threshold: float | None = None,
    median_size: int = MEDIAN_SIZE,
    least_area: int = 64,
    pen: np.ndarray | None = None,
) -> np.ndarray:
    """Finds tissue by its saturation, as CLAM does: median filter, threshold, small pieces and holes removed.

    Args:
        image: a small image of the slide, uint8 [H, W, 3].
        threshold: of the saturation, 0 to 1; Otsu's when None (Otsu 1979).
        median_size: edge of the median filter, in pixels of the image.
        least_area: pieces of tissue and holes of fewer pixels are noise.
        pen: bool [H, W], what is ink: no tissue, and without a say in the threshold.

    Returns:
        bool [H, W].
    """
    smooth = ndimage.median_filter(saturation(image), size=median_size)
    clean = smooth if pen is None else smooth[~pen]
    if threshold is None:
        threshold = float(threshold_otsu(clean)) if clean.size and clean.min() < clean.max() else 1.0
    mask = smooth > max(threshold, LEAST_SATURATION)
    if pen is not None:
        mask &= ~pen
    return ~_without_small(~_without_small(mask, least_area), least_area)


def _without_small(mask: np.ndarray, least_area: int) -> np.ndarray:
    pieces: np.ndarray
    pieces, _ = ndimage.label(mask)  # pyright: ignore[reportGeneralTypeIssues, reportAssignmentType]
    large = np.bincount(pieces.ravel()) >= least_area
    large[0] = False
    return large[pieces]
