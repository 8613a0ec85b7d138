"""One array of activations for many images, as a .npy or .pt file, with optional labels and ids in files beside it."""

import csv
import io
import json
import pickle
from collections.abc import Sequence
from pathlib import Path, PurePath

import numpy as np

from src.csv_tables import read_text, refuse_blanks
from src.data.readers.h5_files import FeatureFileError
from src.data.readers.pt_files import map_tensor, numpy_dtype, to_numpy

_IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".gif", ".dcm", ".svs", ".npy"})


class TensorFile:
    """Activations [n_images, d_in] or [n_images, n_tokens, d_in] in one file, mapped and not loaded.

    Attributes:
        path: the file.
        n_images, n_tokens, d_in: its shape; one token an image where it states none.
        dtype: float16 where the values are, else float32.

    Args:
        path: a .npy file, or a .pt file that holds one tensor.

    Raises:
        FileNotFoundError: when there is no such file.
        FeatureFileError: when it is damaged, empty, or of another shape or kind.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(
                f"Expected a .npy or .pt file of activations at {self.path}, found no such file. "
                "Give dataset.tensors.<part>=<file>."
            )
        self._values = _map_npy(self.path) if self.path.suffix == ".npy" else map_tensor(self.path, "Write it again.")
        shape = tuple(self._values.shape)
        if len(shape) not in (2, 3) or 0 in shape:
            raise FeatureFileError(
                f"Expected activations [n_images, d_in] or [n_images, n_tokens, d_in] in {self.path}, got {shape}."
            )
        if "float" not in str(self._values.dtype):
            raise FeatureFileError(f"Expected floating point activations in {self.path}, got {self._values.dtype}.")
        self.n_images, self.d_in = shape[0], shape[-1]
        self.n_tokens = shape[1] if len(shape) == 3 else 1
        if isinstance(self._values, np.ndarray):
            self.dtype = np.dtype(np.float16 if self._values.dtype == np.float16 else np.float32)
        else:
            self.dtype = numpy_dtype(self._values)

    def read(self, index: int) -> np.ndarray:
        """Returns the activations of one image: [n_tokens, d_in] of type `dtype`, the caller's own."""
        values = self._values[index]
        values = values if isinstance(values, np.ndarray) else to_numpy(values)
        return np.array(values, dtype=self.dtype).reshape(self.n_tokens, self.d_in)


def read_entries(path: str | Path, n_images: int, what: str) -> list[str]:
    """Reads one entry an image, as a string: .npy, .pt, a .json list, or a .txt or .csv file with one a line.

    Args:
        path: the file; a .csv may have a header in its first line where it has one line more than images.
        n_images: the number of images.
        what: "labels", "cases" or "ids", for messages.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it cannot be read, holds another number of entries, or one is empty or has blanks around it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"Expected {what}, one an image, at {path}, found no such file.")
    entries = [str(entry) for entry in _read_list(path)]
    if path.suffix == ".csv" and len(entries) == n_images + 1:
        entries = entries[1:]
    if len(entries) != n_images:
        raise ValueError(f"Expected {what} of {n_images} images in {path}, one each, got {len(entries)}.")
    refuse_blanks(entries, what, path)
    return entries


def image_ids(entries: list[str], source: str | Path) -> list[str]:
    """Makes ids of image paths or names that can name files: folders are joined by `__`, an image's suffix goes.

    Raises:
        ValueError: when two images would share an id.
    """
    paths = [PurePath(entry) for entry in entries]
    paths = [path.with_suffix("") if path.suffix.lower() in _IMAGE_SUFFIXES else path for path in paths]
    ids = ["__".join(part for part in path.parts if part != "/") for path in paths]
    seen: dict[str, str] = {}
    for image_id, entry in zip(ids, entries, strict=True):
        if image_id in seen:
            raise ValueError(f"Expected ids that differ in {source}, got {seen[image_id]!r} and {entry!r}.")
        seen[image_id] = entry
    return ids


def _map_npy(path: Path) -> np.ndarray:
    try:
        # A plain array keeps the map open just as well, and indexes faster than numpy's subclass.
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except (ValueError, TypeError, EOFError, OSError) as error:
        raise FeatureFileError(f"Expected a whole .npy file at {path}, got {error}. Write it again.") from error


def _read_list(path: Path) -> Sequence[object]:
    text = "" if path.suffix in (".npy", ".pt") else read_text(path)
    try:
        if path.suffix == ".npy":
            return np.load(path, allow_pickle=False).reshape(-1).tolist()
        if path.suffix == ".pt":
            import torch  # takes seconds, and most files are no .pt

            content = torch.load(path, map_location="cpu", weights_only=True)
            return content.reshape(-1).tolist() if isinstance(content, torch.Tensor) else list(content)
        if path.suffix == ".json":
            return list(json.loads(text))
        return [row[0] for row in csv.reader(io.StringIO(text)) if row] if path.suffix == ".csv" else text.splitlines()
    except (ValueError, TypeError, EOFError, RuntimeError, csv.Error, pickle.UnpicklingError) as error:
        raise ValueError(f"Expected a list in {path} (.npy, .pt, .json, .txt or .csv), got {error}.") from error
