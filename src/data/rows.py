"""Gathers rows of a packed store by number, from memory or from the map on disk."""

import sys
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch

from src.data.activation_store import ActivationStore

DEFAULT_RAM_BYTES = 2 << 30


class StoreRows:
    """The rows of some slides of a store, numbered from 0 in the order of the slides.

    Args:
        store: packed activations.
        slide_ids: the slides.
        ram_bytes: rows that take at most this much are loaded into memory at first use; more are read from the map,
            in the order of the file within each call.

    Raises:
        ValueError: when a slide was not packed.
    """

    def __init__(self, store: ActivationStore, slide_ids: Sequence[str], ram_bytes: int = DEFAULT_RAM_BYTES) -> None:
        self.store = store
        self.slide_ids = tuple(slide_ids)
        self.row_ids = store.row_ids(self.slide_ids)
        self.in_ram = len(self.row_ids) * store.d_in * store.activations.itemsize <= ram_bytes
        self._buffers = _BufferPool()

    def __len__(self) -> int:
        return len(self.row_ids)

    def gather(self, positions: np.ndarray) -> torch.Tensor:
        """Returns the rows at `positions` [n], in that order: [n, d_in] float32, the caller's own."""
        rows = self._buffers.take((len(positions), self.store.d_in))
        if self.in_ram:
            _take(self._rows, positions, rows)
        else:
            row_ids = self.row_ids[positions]
            order = np.argsort(row_ids)
            sorted_rows = self._buffers.take(rows.shape)
            _take(self.store.activations, row_ids[order], sorted_rows)
            rows[order] = sorted_rows
        return torch.from_numpy(rows)

    @cached_property
    def _rows(self) -> np.ndarray:
        rows = np.empty((len(self.row_ids), self.store.d_in), dtype=np.float32)
        filled = 0
        for start, stop in self.store.row_ranges(self.slide_ids):
            rows[filled : filled + stop - start] = self.store.activations[start:stop]
            filled += stop - start
        return rows


def _take(source: np.ndarray, row_ids: np.ndarray, out: np.ndarray) -> None:
    # mode="clip" writes to `out` directly, "raise" through a copy. One thread of numpy gathers 2 KiB rows as fast as
    # two of torch on idle cores, and eight times as fast when the cores are busy with something else.
    np.take(source, row_ids, axis=0, out=out, mode="clip")


class _BufferPool:
    """Hands out arrays whose memory is used again once nobody holds them.

    Fresh memory costs a page fault every 4 KiB, which takes longer than gathering the rows that go there. A tensor made
    of an array keeps the array alive, also through its views, so an array that only the pool refers to is free.
    """

    def __init__(self) -> None:
        self._arrays: list[np.ndarray] = []

    def take(self, shape: tuple[int, ...]) -> np.ndarray:
        """Returns an uninitialised float32 array that nobody else holds."""
        self._arrays = [array for array in self._arrays if array.shape == shape]
        for i in range(len(self._arrays)):
            if sys.getrefcount(self._arrays[i]) == _REFERENCES_WHEN_FREE:
                return self._arrays[i]
        self._arrays.append(np.empty(shape, dtype=np.float32))
        return self._arrays[-1]


_PROBE = [object()]
_REFERENCES_WHEN_FREE = sys.getrefcount(_PROBE[0])
