"""One feature file of any system, recognised by its content."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from src.activation_spec import ActivationSpec
from src.data.readers.h5_files import REMEDY, FeatureFileError, find_dataset, open_h5, patch_size_level0
from src.data.readers.tensor_files import TensorFile
from src.stores.activations.writer import ItemRows

FEATURE_KEYS = ("features", "feats")
"""CLAM and TRIDENT write `features`, STAMP writes `feats`."""
_MOST_PIXELS = np.iinfo(np.int32).max
_HALF_EXPONENT = np.uint16(0x7C00)
# A piece is checked, digested and written while it lies in the processor's cache.
_PIECE_BYTES = 1 << 20


def open_feature_file(path: Path, item_id: str) -> ItemRows:
    """Reads the header and the coords of the h5 or pt feature file of a slide.

    Known are CLAM h5 (`features`, `coords`; no attributes) and pt (a tensor), TRIDENT h5 (`features`, perhaps fp16;
    `patch_size_level0` among the attributes of `coords`; shape (0,) when empty), and STAMP h5 (`feats` fp16; `coords`
    in micrometres, which are no level-0 pixels without the slide's resolution and are therefore left out). Our own
    files state in the h5 attribute `spec` what the features are of; of others that is unknown.

    Raises:
        FeatureFileError: when the file is damaged, holds no features or no patches, or its coords do not match.
    """
    if path.suffix == ".pt":
        tensor = TensorFile(path, REMEDY)
        shape = _check_shape(tensor.shape, path)
        missing = f"{path.name} is a pt file, which holds none"
        pieces = partial(finite_pieces, tensor.read, shape, path)
        return ItemRows(item_id, path, *shape, tensor.dtype, pieces, coords_missing=missing)
    with open_h5(path) as file:
        dataset = _find_features(file, path)
        shape = _check_shape(dataset.shape, path)
        coords, missing = _read_coords(file, shape[0], path)
        attributes: dict[str, Any] = {
            **dataset.attrs,
            **file.attrs,
            **(file["coords"].attrs if "coords" in file else {}),
        }
        dtype = np.dtype(np.float16 if dataset.dtype == np.float16 else np.float32)
        try:
            spec = ActivationSpec.from_json(attributes.get("spec"))
        except (ValueError, TypeError, AttributeError) as error:
            raise FeatureFileError(f"Expected JSON in the attribute spec of {path}, got {error}. {REMEDY}") from error
    size = patch_size_level0(attributes)
    return ItemRows(item_id, path, *shape, dtype, partial(_h5_pieces, path), coords, missing, size, spec)


def count_rows_not_finite(features: np.ndarray) -> int:
    """Returns how many rows of features [n, d_in] hold nan or inf."""
    if features.dtype == np.float16:
        # The bits of the exponent are all set in nan and inf; numpy's isfinite is 15 times slower on float16.
        finite = (features.view(np.uint16) & _HALF_EXPONENT) != _HALF_EXPONENT
    else:
        finite = np.isfinite(features)
    return 0 if finite.all() else int((~finite.all(axis=1)).sum())


def finite_pieces(
    read: Callable[[slice], np.ndarray], shape: tuple[int, ...], source: object, chunk_rows: int = 1
) -> Iterator[np.ndarray]:
    """Yields rows in pieces of whole chunks, float16 or float32; refuses the file after the last when any is bad.

    Args:
        read: gives a slice of the rows [n_rows, d_in].
        shape: (n_rows, d_in).
        source: what they are read from, for the message.
        chunk_rows: of a chunk in the file: half of a compressed one costs as much as all of it.

    Raises:
        FeatureFileError: when a value is not finite.
    """
    n_bad = 0
    step = -(-_PIECE_BYTES // (shape[1] * 4) // chunk_rows) * chunk_rows
    for start in range(0, shape[0], step):
        piece = read(slice(start, min(start + step, shape[0])))
        piece = piece if piece.dtype == np.float16 else piece.astype(np.float32, copy=False)
        n_bad += count_rows_not_finite(piece)
        yield piece
    if n_bad:
        raise FeatureFileError(f"Expected finite features in {source}, got nan or inf in {n_bad} of its rows. {REMEDY}")


def _h5_pieces(path: Path) -> Iterator[np.ndarray]:
    with open_h5(path) as file:
        dataset = _find_features(file, path)
        chunk_rows = dataset.chunks[0] if dataset.chunks else 1
        yield from finite_pieces(lambda places: dataset[places], dataset.shape, path, chunk_rows)


def _find_features(file: h5py.File, path: Path) -> h5py.Dataset:
    for key in FEATURE_KEYS:
        if (dataset := find_dataset(file, key, path)) is not None:
            return dataset
    raise FeatureFileError(f"Expected a dataset {' or '.join(FEATURE_KEYS)} in {path}, got {sorted(file)}. {REMEDY}")


def _read_coords(file: h5py.File, n_patches: int, path: Path) -> tuple[np.ndarray | None, str]:
    """Returns the coords, or why there are none."""
    dataset = find_dataset(file, "coords", path)
    if dataset is None:
        return None, f"{path.name} has no dataset coords"
    if dataset.shape != (n_patches, 2):
        raise FeatureFileError(
            f"Expected coords of shape ({n_patches}, 2) beside the features in {path}, got {dataset.shape}. {REMEDY}"
        )
    if "feats" in file or file.attrs.get("unit") == "um":
        return None, f"coords of {path.name} are in micrometres, not level-0 pixels"
    coords = dataset[()]
    if not np.issubdtype(coords.dtype, np.integer) and not np.array_equal(coords, np.rint(coords)):
        return None, f"coords of {path.name} are no whole numbers, so no level-0 pixels"
    if np.abs(coords).max() > _MOST_PIXELS:
        raise FeatureFileError(
            f"Expected coords of at most {_MOST_PIXELS} pixels in {path}, got {np.abs(coords).max()}. {REMEDY}"
        )
    return coords.astype(np.int32), ""


def _check_shape(shape: tuple[int, ...], path: Path) -> tuple[int, int]:
    if not shape or shape[0] == 0:
        raise FeatureFileError(f"Expected at least one patch in {path}, got 0 (shape {shape}). {REMEDY}")
    if len(shape) != 2:
        raise FeatureFileError(f"Expected features of shape [n_patches, d_in] in {path}, got {shape}. {REMEDY}")
    return shape[0], shape[1]
