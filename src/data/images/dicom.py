"""DICOM images as 8-bit RGB, windowed as their files say."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from src.data.images.errors import ImageFileError
from src.data.images.intensity import apply_window, full_range, min_to_max

_PREAMBLE_BYTES = 128
_MAGIC = b"DICM"
_GREY = ("MONOCHROME1", "MONOCHROME2")


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM: by its mark (PS3.10), or its suffix where an old file lacks that."""
    if path.suffix.lower() in (".dcm", ".dicom"):
        return True
    with open(path, "rb") as file:
        return file.read(_PREAMBLE_BYTES + len(_MAGIC))[_PREAMBLE_BYTES:] == _MAGIC


def read_dicom(path: Path, max_pixels: int, window: Sequence[float] | None = None) -> np.ndarray:
    """Reads the image of a DICOM file as 8-bit RGB.

    Grey values pass the modality's rescale and then, in this order of preference: `window`; the file's table of values
    of interest (VOI LUT); its first window. Without any of them 8-bit values without a rescale stay as they are, and
    others go from the smallest to the largest of the image. MONOCHROME1 is inverted. YBR becomes RGB, and a palette its
    colours. (DICOM PS3.3, C.7.6.3.1.2 and C.11.)

    Args:
        path: the file.
        max_pixels: an image of more is refused before it is decoded.
        window: centre and width, instead of the file's.

    Returns:
        uint8 [height, width, 3].

    Raises:
        ImportError: when pydicom is missing.
        ImageFileError: when the file is damaged, has no pixels, several frames, or an encoding that cannot be decoded.
    """
    try:
        import pydicom
        from pydicom.pixels.utils import pixel_array
    except ImportError as error:
        raise ImportError(f"Expected pydicom to read {path}, which is DICOM: pip install pydicom.") from error
    try:
        file: Any = pydicom.dcmread(path, force=True)
        _refuse_unusable(file, path, max_pixels)
        values = pixel_array(file)
        return _to_rgb(file, values, window)
    except ImageFileError:
        raise
    except Exception as error:  # pydicom's readers raise anything for a damaged file
        raise ImageFileError(
            f"Expected a DICOM image that can be decoded at {path}, got {type(error).__name__}: {error}. Copy it "
            "again; for compressed ones: pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg."
        ) from error


def _refuse_unusable(file: Any, path: Path, max_pixels: int) -> None:
    if not any(keyword in file for keyword in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        kind = file.SOPClassUID.name if "SOPClassUID" in file else "of no stated kind"
        raise ImageFileError(
            f"Expected pixels in the DICOM file {path}, got none ({kind}). Take it out of the data set."
        )
    n_frames = int(file.get("NumberOfFrames") or 1)
    if n_frames > 1:
        raise ImageFileError(
            f"Expected one image in the DICOM file {path}, got {n_frames} frames. Write them to a file each."
        )
    if (n_pixels := file.Rows * file.Columns) > max_pixels:
        raise ImageFileError(
            f"Expected at most {max_pixels:,} pixels in {path}, got {n_pixels:,}. Raise dataset.max_pixels."
        )


def _to_rgb(file: Any, values: np.ndarray, window: Sequence[float] | None) -> np.ndarray:
    from pydicom.pixels.processing import apply_color_lut

    if file.PhotometricInterpretation == "PALETTE COLOR":
        colours = apply_color_lut(values, file)[..., :3]
        return full_range(colours, 8 * colours.dtype.itemsize)
    if file.PhotometricInterpretation not in _GREY:  # pixel_array has made RGB of YBR
        return full_range(values, file.BitsStored)
    grey = _shown(file, values, window)
    if file.PhotometricInterpretation == "MONOCHROME1":
        grey = 255 - grey
    return np.repeat(grey[..., None], 3, axis=2)


def _shown(file: Any, values: np.ndarray, window: Sequence[float] | None) -> np.ndarray:
    from pydicom.pixels.processing import apply_modality_lut, apply_voi

    rescaled = apply_modality_lut(values, file)
    if window is not None:
        return apply_window(rescaled, window)
    if "VOILUTSequence" in file:
        n_bits = file.VOILUTSequence[0].LUTDescriptor[2]
        return full_range(apply_voi(rescaled, file), n_bits)
    if file.get("WindowWidth") not in (None, ""):
        center, width = (np.atleast_1d(file[name].value)[0] for name in ("WindowCenter", "WindowWidth"))
        return apply_window(rescaled, (float(center), float(width)), file.get("VOILUTFunction") or "LINEAR")
    if rescaled.dtype == np.uint8:
        return full_range(rescaled, file.BitsStored)
    return min_to_max(rescaled)
