"""Images that lie in arrays, many in a file: .npz, .npy, and the batches of CIFAR-10 and CIFAR-100."""

import pickle
import threading
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.npyio import NpzFile

from src.data.images.errors import ImageFileError

_CIFAR_SHAPE = (3, 32, 32)
# What CIFAR's pickles name: how numpy and Python spell arrays and bytes.
_SAFE = {
    *((f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")),
    ("numpy", "ndarray"),
    ("_codecs", "encode"),
}


class ImageArrays:
    """Arrays of images, each opened once and kept; .npy is mapped. Several threads may read at once."""

    def __init__(self) -> None:
        self._open: dict[tuple[Path, str | None], np.ndarray] = {}
        self._lock = threading.Lock()

    def read(self, path: Path, index: int, key: str | None = None) -> np.ndarray:
        """Reads an image: uint8 [height, width, 3].

        Args:
            path: of the file.
            index: of the image.
            key: of the array, where the file has several.

        Raises:
            ImageFileError: when the file is damaged, holds no images, or not as many.
        """
        with self._lock:
            if (path, key) not in self._open:
                self._open[path, key] = read_images(path, key)
        images = self._open[path, key]
        if index >= len(images):
            raise ImageFileError(f"Expected an image at place {index} of {path}, got {len(images)} images.")
        image = np.asarray(images[index])
        return np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image


def read_images(path: Path, key: str | None = None) -> np.ndarray:
    """Reads the images of a file: uint8 [n_images, height, width] or [n_images, height, width, 3].

    Args:
        path: an .npz or .npy file, or a batch of CIFAR.
        key: of the array in an .npz file; may be None where one alone is of images.

    Raises:
        ImageFileError: when it is damaged or holds no such array.
    """
    if path.suffix == ".npz":
        images = read_npz(path, [image_key(path) if key is None else key])[0]
    elif path.suffix == ".npy":
        images = _map(path)
    else:
        pixels = read_batch(path)[b"data"]
        images = pixels.reshape(len(pixels), *_CIFAR_SHAPE).transpose(0, 2, 3, 1)
    if not _are_images(images.shape, images.dtype):
        raise ImageFileError(
            f"Expected images, uint8 [n_images, height, width, 3] or [n_images, height, width], in {path}, got "
            f"{images.dtype} {list(images.shape)}."
        )
    return images


def image_key(path: Path) -> str:
    """Returns the key of the one array of images in an .npz file.

    Raises:
        ImageFileError: when it is damaged, or holds none or several.
    """
    with _opened(path) as file:
        found = [key for key in file.files if _are_images(*_header(file, key))]
        if len(found) != 1:
            raise ImageFileError(
                f"Expected one array of images (uint8 [n_images, height, width, 3]) in {path}, got "
                f"{found or file.files}. Name it in the path: <file>.npz/<key>[<index>]."
            )
    return found[0]


def count_entries(path: Path, key: str) -> int:
    """Returns the length of an array in an .npz file, without reading it; raises as `read_npz` does."""
    with _opened(path, [key]) as file:
        return _header(file, key)[0][0]


def read_npz(path: Path, keys: Sequence[str]) -> list[np.ndarray]:
    """Reads arrays of an .npz file.

    Raises:
        ImageFileError: when it is damaged, or lacks one of them.
    """
    with _opened(path, keys) as file:
        return [file[key] for key in keys]


def read_batch(path: Path) -> dict[bytes, Any]:
    """Reads a pickled batch of CIFAR-10 or CIFAR-100, "python version" (https://www.cs.toronto.edu/~kriz/cifar.html).

    Nothing in it is run: whatever a pickle names beyond arrays and plain values is refused.

    Raises:
        ImageFileError: when it is damaged, or is something else.
    """
    try:
        with open(path, "rb") as file:
            content = _ArraysOnly(file, encoding="bytes").load()
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, IndexError, KeyError) as error:
        raise ImageFileError(f"Expected a batch of CIFAR at {path}, got {error}. Copy it again.") from error
    if not isinstance(content, dict):
        raise ImageFileError(f"Expected a batch of CIFAR at {path}, got {type(content).__name__}.")
    return content


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Any:
        if (module_name, global_name) == ("numpy", "dtype"):
            # CIFAR's were written with 0 and 1 for the flags, which numpy 2.4 warns of.
            return lambda kind, *flags: np.dtype(kind, *map(bool, flags))
        if (module_name, global_name) not in _SAFE:
            raise pickle.UnpicklingError(f"a pickle that names {module_name}.{global_name}, which was not run")
        return super().find_class(module_name, global_name)


@contextmanager
def _opened(path: Path, keys: Sequence[str] = ()) -> Iterator[Any]:
    """Opens an .npz file that must have some keys; what fails in the block counts as the file's fault."""
    try:
        with open(path, "rb") as stream, NpzFile(stream, allow_pickle=False) as file:
            if missing := [key for key in keys if key not in file.files]:
                raise ImageFileError(f"Expected {list(keys)} in {path}, got {file.files}: {missing} are missing.")
            yield file
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise _damaged(path, error) from error


def _map(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise _damaged(path, error) from error


def _header(file: Any, key: str) -> tuple[tuple[int, ...], np.dtype]:
    """Returns shape and type of an array in an .npz file, without reading its values."""
    name = key if key in file.zip.namelist() else f"{key}.npy"
    with file.zip.open(name) as member:
        version = np.lib.format.read_magic(member)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(member)
    return shape, dtype


def _are_images(shape: Sequence[int], dtype: np.dtype) -> bool:
    return dtype == np.uint8 and (len(shape) == 3 or (len(shape) == 4 and shape[-1] == 3))


def _damaged(path: Path, error: Exception) -> ImageFileError:
    return ImageFileError(f"Expected whole arrays in {path}, got {error}. Copy it again.")
