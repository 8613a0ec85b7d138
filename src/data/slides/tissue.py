"""Where a slide holds tissue."""

import numpy as np
from scipy import ndimage
from skimage.filters import threshold_otsu

# Glass is grey and not quite clean: a saturation below CLAM's default threshold (8 of 255) is never tissue, whatever
# Otsu makes of a slide that holds next to none.
_LEAST_SATURATION = 8 / 255


def saturation(image: np.ndarray) -> np.ndarray:
    """Returns the saturation of HSV, (max - min) / max over the channels of uint8 [H, W, 3]: float32 [H, W] in 0..1."""
    highest = image.max(axis=2).astype(np.float32)
    return (highest - image.min(axis=2)) / np.maximum(highest, 1)


def find_tissue(
    image: np.ndarray, threshold: float | None = None, median_size: int = 7, least_area: int = 64
) -> np.ndarray:
    """Finds tissue by its saturation, as CLAM does: median filter, threshold, small pieces and holes removed.

    Args:
        image: a small image of the slide, uint8 [H, W, 3].
        threshold: of the saturation, 0 to 1; Otsu's when None (Otsu 1979).
        median_size: edge of the median filter, in pixels of the image.
        least_area: pieces of tissue and holes of fewer pixels are noise.

    Returns:
        bool [H, W].
    """
    smooth = ndimage.median_filter(saturation(image), size=median_size)
    if threshold is None:
        threshold = float(threshold_otsu(smooth)) if smooth.min() < smooth.max() else 1.0
    mask = smooth > max(threshold, _LEAST_SATURATION)
    return ~_without_small(~_without_small(mask, least_area), least_area)


def _without_small(mask: np.ndarray, least_area: int) -> np.ndarray:
    pieces: np.ndarray
    pieces, _ = ndimage.label(mask)  # pyright: ignore[reportGeneralTypeIssues, reportAssignmentType]
    large = np.bincount(pieces.ravel()) >= least_area
    large[0] = False
    return large[pieces]
