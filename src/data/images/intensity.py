"""Grey values of more than 8 bits to the 256 that backbones take."""

from collections.abc import Sequence

import numpy as np


def apply_window(values: np.ndarray, window: Sequence[float], function: str = "LINEAR") -> np.ndarray:
    """Maps grey values to 0..255 through a window: what is below it is black, what is above it white.

    The functions are those of DICOM PS3.3, C.11.2.1.2.1 and C.11.2.1.3.

    Args:
        values: of any shape and number type.
        window: centre and width, in units of the values.
        function: `LINEAR`, `LINEAR_EXACT` or `SIGMOID`.

    Returns:
        uint8 of the same shape.

    Raises:
        ValueError: when the width is too small (below 2 of `LINEAR`, else 0), or the function is another one.
    """
    center, width = window
    if width < 2 if function == "LINEAR" else width <= 0:
        raise ValueError(f"Expected a window [centre, width] of a width of 2 or more, got {[center, width]}.")
    values = np.asarray(values, np.float32)
    if function == "LINEAR":
        return _to_uint8((values - (center - 0.5)) / (width - 1) + 0.5)
    if function == "LINEAR_EXACT":
        return _to_uint8((values - center) / width + 0.5)
    if function == "SIGMOID":
        return _to_uint8(1 / (1 + np.exp(np.clip(-4 * (values - center) / width, -80, 80))))
    raise ValueError(f"Expected the window function LINEAR, LINEAR_EXACT or SIGMOID, got {function!r}.")


def full_range(values: np.ndarray, n_bits: int) -> np.ndarray:
    """Maps 0 .. 2^n_bits - 1 to 0 .. 255, rounded: of 16 bits a division by 257."""
    return _to_uint8(np.asarray(values, np.float32) / (2**n_bits - 1))


def min_to_max(values: np.ndarray) -> np.ndarray:
    """Maps the smallest value of an image to 0 and the largest to 255; an image of one value is black."""
    values = np.asarray(values, np.float32)
    low, high = float(values.min()), float(values.max())
    return _to_uint8((values - low) / max(high - low, np.finfo(np.float32).tiny))


def _to_uint8(shares: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(shares, 0, 1) * 255).astype(np.uint8)
