"""One array of activations for many images, as a .npy or .pt file, with optional labels and ids in files beside it."""

import csv
import io
import json
import pickle
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

import numpy as np

from src.csv_tables import read_text, refuse_blanks
from src.data.readers.h5_files import FeatureFileError

if TYPE_CHECKING:  # torch takes seconds to import, and most files are no .pt
    import torch

_IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".gif", ".dcm", ".svs", ".npy"})


class TensorFile:
    """One array in a .npy or .pt file, mapped and not loaded.

    Attributes:
        path: the file.
        shape: of the array.
        dtype: of what `read` gives: float16 where the values are, else float32.

    Args:
        path: a .npy file, or a .pt file that holds one tensor; nothing in it is run. One that torch wrote before 1.6
            cannot be mapped and is read whole.
        remedy: a sentence on what to do about a bad file.

    Raises:
        FeatureFileError: when it is damaged, or holds something else than one dense array.
    """

    def __init__(self, path: Path, remedy: str = "Write it again.") -> None:
        if not path.is_file():
            raise FeatureFileError(f"Expected a {path.suffix} file at {path}, got no regular file. {remedy}")
        self.path = path
        self._values = _map_npy(path, remedy) if path.suffix == ".npy" else _map_pt(path, remedy)
        self.shape = tuple(self._values.shape)
        self.dtype = np.dtype(np.float16 if self.stored_dtype == "float16" else np.float32)

    @property
    def stored_dtype(self) -> str:
        """The type of the values in the file, e.g. `bfloat16`, which numpy has not."""
        return str(self._values.dtype).removeprefix("torch.")

    def read(self, places: int | slice) -> np.ndarray:
        """Returns the values at some places along the first axis, of type `dtype`; not to be changed."""
        values = self._values[places]
        if not isinstance(values, np.ndarray):
            values = (values if self.dtype == np.float16 else values.float()).numpy()
        return values.astype(self.dtype, copy=False)


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


def _map_npy(path: Path, remedy: str) -> np.ndarray:
    try:
        # A plain array keeps the map open just as well, and indexes faster than numpy's subclass.
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except (ValueError, TypeError, EOFError, OSError) as error:
        raise FeatureFileError(f"Expected a whole .npy file at {path}, got {error}. {remedy}") from error


def _map_pt(path: Path, remedy: str) -> "torch.Tensor":
    """Maps a tensor; refuses one whose shape promises more than the file holds (a view, as `expand` makes)."""
    import torch

    try:
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap can only be used" not in str(error):
                raise
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, ValueError, EOFError, OSError, pickle.UnpicklingError) as error:
        found = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FeatureFileError(f"Expected a readable .pt file at {path}, got {found} {remedy}") from error
    if not isinstance(content, torch.Tensor) or content.layout != torch.strided or content.is_quantized:
        kind = f"{content.layout} values" if isinstance(content, torch.Tensor) else type(content).__name__
        raise FeatureFileError(f"Expected one dense tensor in {path}, got {kind}: save the tensor alone. {remedy}")
    declared, stored = content.numel() * content.element_size(), content.untyped_storage().nbytes()
    if declared > stored:
        raise FeatureFileError(
            f"Expected {declared:,} bytes in {path}, as its shape {tuple(content.shape)} says, got {stored:,}: a view "
            f"that repeats its values was saved. Save tensor.contiguous(). {remedy}"
        )
    return content.detach()


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
