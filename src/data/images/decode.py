"""Image files of any usual kind as 8-bit RGB."""

import io
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from src.data.images.dicom import is_dicom, read_dicom
from src.data.images.errors import ImageFileError
from src.data.images.intensity import apply_window, full_range

MAX_PIXELS = 89_478_485
"""The limit that Pillow has by default: 256 MiB as RGB."""

# Ours, which a user can raise, is looked at instead; Pillow's warns or raises at twice its value.
Image.MAX_IMAGE_PIXELS = None
# Not all that Pillow knows: some formats start other programs (EPS).
_FORMATS = ("JPEG", "JPEG2000", "PNG", "TIFF", "BMP", "GIF", "WEBP", "PPM")
# What Pillow's readers raise for damaged files.
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, KeyError, IndexError, TypeError, struct.error, zlib.error)


def read_image(
    path: str | Path,
    max_pixels: int = MAX_PIXELS,
    window: Sequence[float] | None = None,
    content: bytes | None = None,
) -> np.ndarray:
    """Reads an image file as 8-bit RGB, upright.

    Pillow reads JPEG, JPEG 2000, PNG, TIFF, BMP, GIF, WebP and PPM, pydicom DICOM (see `read_dicom`); the content
    decides, not the name. Of several frames or pages the first is read. Colour profiles are not applied, as timm and
    torchvision do not.

    - EXIF's orientation is applied.
    - CMYK of JPEGs is taken as inverted, as Adobe writes it and Pillow assumes.
    - What is transparent is white.
    - Grey of 16 bits is divided by 257 and rounded, or seen through `window`. Colour of 16 bits keeps its high byte:
      Pillow decodes no more of it.
    - Grey of 32 bits or floating point has no range of its own and needs `window`.

    Args:
        path: the file.
        max_pixels: an image of more is refused before it is decoded.
        window: centre and width of the grey values to show, of images of more than 8 bits; values as in the file, of
            DICOM after its rescale.
        content: what the file holds, where it lies within another; `path` then serves messages. Not of DICOM.

    Returns:
        uint8 [height, width, 3].

    Raises:
        FileNotFoundError: when there is no such file.
        ImageFileError: when it is no image, damaged, cut off or too large.
    """
    path = Path(path)
    if content is None and not path.is_file():
        raise FileNotFoundError(f"Expected an image at {path}, found no such file.")
    if content is None and is_dicom(path):
        return read_dicom(path, max_pixels, window)
    try:
        with Image.open(path if content is None else io.BytesIO(content), formats=_FORMATS) as image:
            refuse_too_large(path, image.width * image.height, max_pixels)
            image.load()
            return _to_rgb(image, path, window)
    except ImageFileError:
        raise
    except UnidentifiedImageError as error:
        raise ImageFileError(
            f"Expected an image (JPEG, PNG, TIFF, DICOM, ...) at {path}, got a file of another kind or a damaged "
            "header. Copy it again."
        ) from error
    except _DAMAGED as error:
        raise ImageFileError(f"Expected a whole image at {path}, got {error}. Copy it again.") from error


def refuse_too_large(path: Path, n_pixels: int, max_pixels: int) -> None:
    """Raises an ImageFileError for an image that would fill the memory."""
    if n_pixels > max_pixels:
        raise ImageFileError(
            f"Expected at most {max_pixels:,} pixels in {path}, got {n_pixels:,}. Cut it into tiles as a slide "
            "(task=tile), or raise dataset.max_pixels."
        )


def _to_rgb(image: Image.Image, path: Path, window: Sequence[float] | None) -> np.ndarray:
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I") or image.mode == "F":
        return np.repeat(_grey(image, path, window)[..., None], 3, axis=2)
    if image.has_transparency_data:
        colours = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), colours)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _grey(image: Image.Image, path: Path, window: Sequence[float] | None) -> np.ndarray:
    values = np.asarray(image)
    if window is not None:
        return apply_window(values, window)
    # Older versions of Pillow read grey PNGs of 16 bits as 32 bits.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return full_range(values, 16)
    raise ImageFileError(
        f"Expected grey values of 8 or 16 bits in {path}, got {values.dtype} without a range. Give "
        "dataset.window=[<centre>,<width>]."
    )
