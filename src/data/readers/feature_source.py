"""The values of one slide's feature file in pieces, read past HDF5's global lock where they lie plainly on disk."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np

from src.data.readers.feature_files import Placement, check_shape, find_features, read_placement
from src.data.readers.h5_files import REMEDY, FeatureFileError, open_h5

PIECE_BYTES = 1 << 20
"""A piece is read, checked, digested and written while it lies in the processor's cache."""


@dataclass(frozen=True)
class FeatureSource:
    """What the header of a feature file says, and how to read its values.

    `dtype` is float16 where the file holds that, else float32. `pieces` takes a buffer of bytes and yields the rows in
    order, [n, d_in] of that type or of float32; a piece may lie in the buffer and is valid until the next is asked for.
    `placement` is as the file states it.
    """

    n_patches: int
    d_in: int
    dtype: np.dtype
    pieces: Callable[[np.ndarray], Iterator[np.ndarray]]
    placement: Placement


@dataclass(frozen=True)
class _Run:
    """Consecutive rows that lie one behind the other in the file, from byte `offset`."""

    first_row: int
    n_rows: int
    offset: int


def open_h5_source(path: Path) -> FeatureSource:
    """Opens the source of a CLAM, TRIDENT or STAMP h5 file; reads the header and the coords.

    Raises:
        FeatureFileError: when the file is damaged, holds no features or no patches, or its coords do not match.
    """
    with open_h5(path) as file:
        dataset = find_features(file, path)
        n_patches, d_in = check_shape(dataset.shape, path)
        placement = read_placement(file, n_patches, path)
        dtype = np.dtype(np.float16 if dataset.dtype == np.float16 else np.float32)
        runs = _plain_runs(dataset, dtype) if file.userblock_size == 0 else None
    if runs is None:
        return FeatureSource(n_patches, d_in, dtype, partial(_read_by_h5py, path), placement)
    return FeatureSource(n_patches, d_in, dtype, partial(_read_runs, path, runs, d_in, dtype), placement)


def _plain_runs(dataset: h5py.Dataset, dtype: np.dtype) -> list[_Run] | None:
    """Returns where the rows lie in the file, or None when only HDF5 can read them.

    Plain are values that are stored as the machine holds them: no filter, all chunks there and as wide as the data.
    """
    created = dataset.id.get_create_plist()
    if dataset.dtype != dtype.newbyteorder("<") or created.get_nfilters():
        return None
    n_rows, d_in = dataset.shape
    if dataset.chunks is None:
        offset = dataset.id.get_offset()
        return None if offset is None else [_Run(0, n_rows, offset)]
    chunk_rows, chunk_width = dataset.chunks
    chunks: list[h5py.h5d.StoreInfo] = []
    dataset.id.chunk_iter(chunks.append)
    if chunk_width != d_in or len(chunks) != -(-n_rows // chunk_rows):
        return None
    chunks.sort()  # by the number of the first row
    offsets = np.array([chunk.byte_offset for chunk in chunks])
    breaks = np.flatnonzero(np.diff(offsets) != chunk_rows * d_in * dtype.itemsize) + 1
    bounds = [0, *(breaks * chunk_rows).tolist(), n_rows]
    return [_Run(first, last - first, int(offsets[first // chunk_rows])) for first, last in pairwise(bounds)]


def _read_runs(path: Path, runs: list[_Run], d_in: int, dtype: np.dtype, buffer: np.ndarray) -> Iterator[np.ndarray]:
    row_bytes = d_in * dtype.itemsize
    piece_rows = len(buffer) // row_bytes
    descriptor = os.open(path, os.O_RDONLY)
    try:
        filled = 0
        for run in runs:
            done = 0
            while done < run.n_rows:
                rows = min(run.n_rows - done, piece_rows - filled)
                into = buffer.data[filled * row_bytes : (filled + rows) * row_bytes]
                _read_exactly(descriptor, into, run.offset + done * row_bytes, path)
                done, filled = done + rows, filled + rows
                if filled == piece_rows:
                    yield buffer[: filled * row_bytes].view(dtype).reshape(filled, d_in)
                    filled = 0
        if filled:
            yield buffer[: filled * row_bytes].view(dtype).reshape(filled, d_in)
    finally:
        os.close(descriptor)


def _read_exactly(descriptor: int, into: memoryview, offset: int, path: Path) -> None:
    while into:
        n_read = os.preadv(descriptor, [into], offset)
        if n_read == 0:
            raise FeatureFileError(f"Expected features up to byte {offset + len(into):,} of {path}, it ends. {REMEDY}")
        into, offset = into[n_read:], offset + n_read


def _read_by_h5py(path: Path, buffer: np.ndarray) -> Iterator[np.ndarray]:
    with open_h5(path) as file:
        dataset = find_features(file, path)
        chunk_rows = dataset.chunks[0] if dataset.chunks else 1
        # Whole chunks: half of a compressed one costs as much as all of it.
        piece_rows = -(-len(buffer) // (dataset.shape[1] * 4) // chunk_rows) * chunk_rows or chunk_rows
        for start in range(0, len(dataset), piece_rows):
            piece = dataset[start : start + piece_rows]
            yield piece if piece.dtype == np.float16 else piece.astype(np.float32, copy=False)
