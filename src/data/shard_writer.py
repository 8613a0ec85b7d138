"""Writes rows straight to their place in shards, from several threads."""

import ctypes
import errno
import io
import os
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from src.data.shards import ShardedRows, map_shard

SHARD_BYTES = 2 << 30
"""The largest shard: file systems and tools with 32-bit sizes end there."""
_MOST_HEADER_BYTES = 256
_FALLOCATE: Any = getattr(ctypes.CDLL(None, use_errno=True), "fallocate", None)  # Linux has it
if _FALLOCATE is not None:
    _FALLOCATE.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


class ShardWriter:
    """The shards that a plan adds to a store, at full size from the start.

    Values go there by plain writes and not through a memory map: on a full disk a write fails with an error, a map
    kills the process (SIGBUS). Shards that are there with the right header and size are kept as they are.

    Args:
        paths: of the shards.
        first_row: the number of the first row.
        sizes: rows of each shard.
        d_in: the width of a row.
        dtype: of the values on disk.
        reserve: whether to take the disk for all rows at once; else rows that are never written take none.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        first_row: int,
        sizes: Sequence[int],
        d_in: int,
        dtype: np.dtype,
        reserve: bool = True,
    ) -> None:
        self.dtype = dtype
        self._paths = list(paths)
        self._starts = np.cumsum([first_row, *sizes])
        self._row_bytes = d_in * dtype.itemsize
        self._descriptors: list[int] = []
        self._offsets: list[int] = []
        for path, size in zip(self._paths, sizes, strict=True):
            self._descriptors.append(os.open(path, os.O_RDWR | os.O_CREAT, 0o666))
            header = _header((size, d_in), dtype)
            self._offsets.append(len(header))
            _prepare(self._descriptors[-1], header, size * self._row_bytes, _reserve if reserve else os.ftruncate)

    def write(self, row: int, values: np.ndarray) -> None:
        """Writes values [n, d_in], C-contiguous and of the shards' type, as the rows from number `row` on."""
        while len(values):
            number = int(np.searchsorted(self._starts, row, side="right")) - 1
            rows = min(len(values), int(self._starts[number + 1]) - row)
            offset = self._offsets[number] + (row - int(self._starts[number])) * self._row_bytes
            _write_exactly(self._descriptors[number], values[:rows].data.cast("B"), offset)
            row, values = row + rows, values[rows:]

    def read(self, start: int, stop: int) -> np.ndarray:
        """Returns rows [stop - start, d_in] as they are on disk."""
        first = int(self._starts[0])
        return self._mapped.read(start - first, stop - first)

    @cached_property
    def _mapped(self) -> ShardedRows:
        return ShardedRows([map_shard(path, (self.dtype.name,)) for path in self._paths])

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for descriptor in self._descriptors:
            os.close(descriptor)


def rows_per_shard(d_in: int, dtype: np.dtype) -> int:
    """Returns how many rows fit a shard."""
    return max(1, (SHARD_BYTES - _MOST_HEADER_BYTES) // (d_in * dtype.itemsize))


def _header(shape: tuple[int, int], dtype: np.dtype) -> bytes:
    """Returns an npy header (format 1.0, NEP 1), whose length numpy pads to a multiple of 64."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    )
    return file.getvalue()


def _prepare(descriptor: int, header: bytes, n_bytes: int, enlarge: Callable[[int, int], None]) -> None:
    size = len(header) + n_bytes
    size_before = os.fstat(descriptor).st_size
    if size_before == size and os.pread(descriptor, len(header), 0) == header:
        return
    if size_before:  # of an empty file it would make ext4 wait for the disk when the file is closed
        os.ftruncate(descriptor, 0)
    enlarge(descriptor, size)
    _write_exactly(descriptor, memoryview(header), 0)


def _reserve(descriptor: int, size: int) -> None:
    """Makes a file `size` long and reserves the disk for it, so that a full disk shows now; writing is faster, too.

    Not `os.posix_fallocate`: where the file system cannot reserve (NFS 3), the C library then writes to every block.
    """
    if _FALLOCATE is not None:
        if _FALLOCATE(descriptor, 0, 0, size) == 0:
            return
        number = ctypes.get_errno()
        if number not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINTR):
            raise OSError(number, os.strerror(number))
    os.ftruncate(descriptor, size)


def _write_exactly(descriptor: int, values: memoryview, offset: int) -> None:
    while values:
        n_written = os.pwrite(descriptor, values, offset)
        values, offset = values[n_written:], offset + n_written
