"""Writes whole-slide images as tiled, pyramidal TIFFs."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from src.files import write_atomically

_TILE = 256
_SMALLEST_LEVEL = 256
_JPEG_QUALITY = 90


def write_slide(path: str | Path, image: NDArray[np.uint8], mpp: float) -> None:
    """Writes an image as a generic tiled TIFF with levels that halve, JPEG-compressed, whole or not at all.

    Args:
        path: the file to write, `.tif` or `.tiff`.
        image: RGB, [height, width, 3].
        mpp: micrometres a pixel, written as the resolution that OpenSlide reads.

    Raises:
        ImportError: when tifffile or imagecodecs is not installed.
    """
    try:
        import imagecodecs as _codecs  # noqa: F401  (tifffile needs it for JPEG and would say so late)
        import tifffile
    except ImportError as error:
        raise ImportError(
            f"Expected tifffile and imagecodecs to write {path}, got {error}: pip install tifffile imagecodecs "
            "(the extra `wsi`)."
        ) from error
    with write_atomically(path) as temporary, tifffile.TiffWriter(temporary) as file:
        level = 0
        while level == 0 or max(image.shape[:2]) >= _SMALLEST_LEVEL:
            pixels_per_cm = 1e4 / (mpp * 2**level)
            file.write(
                image,
                photometric="rgb",
                tile=(_TILE, _TILE),
                compression="jpeg",
                compressionargs={"level": _JPEG_QUALITY},
                resolution=(pixels_per_cm, pixels_per_cm),
                resolutionunit="CENTIMETER",
                subfiletype=1 if level else 0,
                metadata=None,
                software="Loupe",
            )
            image = _halve(image)
            level += 1


def _halve(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = image.shape[0] // 2, image.shape[1] // 2
    quads = image[: 2 * height, : 2 * width].reshape(height, 2, width, 2, 3)
    sums = quads.sum(axis=(1, 3), dtype=np.uint16)
    return ((sums + 2) // 4).astype(np.uint8)
