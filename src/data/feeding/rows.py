"""The rows of some slides of a packed store, and the memory that gathered rows go to."""

import sys
import threading
from collections.abc import Sequence

import numpy as np
import torch

from src.files import digest_text
from src.stores.activations.store import ActivationStore

DEFAULT_RAM_BYTES = 2 << 30
_HALF_ROWS = 512


class StoreRows:
    """The rows of some slides of a store, numbered from 0 in the order of the slides; a `RowSource`.

    Args:
        store: packed activations.
        item_ids: the slides.

    Raises:
        ValueError: when a slide was not packed.
    """

    def __init__(self, store: ActivationStore, item_ids: Sequence[str]) -> None:
        self._store = store
        ranges = np.array(store.row_ranges(item_ids), dtype=np.int64).reshape(-1, 2)
        lengths = ranges[:, 1] - ranges[:, 0]
        self.n_rows = int(lengths.sum())
        self.d_in, self.dtype = store.d_in, store.dtype
        self.slide_starts = np.cumsum(lengths) - lengths
        # Of the values, wherever the store has them: one that was packed again in another order has the same rows.
        self.identity = digest_text("\n".join(f"{item_id} {store.digest(item_id)}" for item_id in item_ids))
        # Slides that follow each other in the store are read in one go.
        follows = np.append(False, ranges[1:, 0] == ranges[:-1, 1])[: len(ranges)]
        self._starts = self.slide_starts[~follows]
        self._row_ids = ranges[~follows, 0]

    def __len__(self) -> int:
        return self.n_rows

    def read(self, start: int, stop: int) -> np.ndarray:
        """Returns rows [stop - start, d_in] as stored: a read-only view where they lie together, else a copy."""
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        parts = []
        while start < stop:
            end = min(stop, int(self._starts[first + 1])) if first + 1 < len(self._starts) else stop
            row_id = int(self._row_ids[first] - self._starts[first])
            parts.append(self._store.read(row_id + start, row_id + end))
            start, first = end, first + 1
        if not parts:
            return np.empty((0, self.d_in), dtype=self.dtype)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def take_rows(rows: np.ndarray, row_ids: np.ndarray, out: np.ndarray) -> None:
    """Copies rows [n_rows, d_in], float16 or float32, by number to `out` [n, d_in] float32."""
    # mode="clip" writes to `out` directly, "raise" through a copy. One thread of numpy gathers 2 KiB rows as fast as
    # two of torch on idle cores, and eight times as fast when the cores are busy with something else.
    if rows.dtype == np.float32:
        np.take(rows, row_ids, axis=0, out=out, mode="clip")
        return
    half = np.empty((min(_HALF_ROWS, len(row_ids)), rows.shape[1]), dtype=rows.dtype)
    for start in range(0, len(row_ids), _HALF_ROWS):
        piece = row_ids[start : start + _HALF_ROWS]
        np.take(rows, piece, axis=0, out=half[: len(piece)], mode="clip")
        copy_rows(half[: len(piece)], out[start : start + len(piece)])


def copy_rows(rows: np.ndarray, out: np.ndarray) -> None:
    """Copies rows to `out` of the same shape, of the same type or from float16 to float32."""
    if rows.dtype == out.dtype:
        np.copyto(out, rows)
    else:
        # Torch converts float16 nine times as fast as numpy.
        torch.from_numpy(out).copy_(torch.from_numpy(rows if rows.flags.writeable else rows.copy()))


class BufferPool:
    """Hands out arrays whose memory is used again once nobody holds them.

    Fresh memory costs a page fault every 4 KiB, which takes longer than gathering the rows that go there. A tensor made
    of an array keeps the array alive, also through its views, so an array that only the pool refers to is free.
    """

    def __init__(self) -> None:
        self._arrays: list[np.ndarray] = []
        self._lock = threading.Lock()

    def take(self, shape: tuple[int, ...]) -> np.ndarray:
        """Returns an uninitialised float32 array that nobody else holds."""
        with self._lock:
            self._arrays = [array for array in self._arrays if len(array) >= shape[0] and array.shape[1:] == shape[1:]]
            for i in range(len(self._arrays)):
                if sys.getrefcount(self._arrays[i]) == _REFERENCES_WHEN_FREE:
                    return self._arrays[i][: shape[0]]
            self._arrays.append(np.empty(shape, dtype=np.float32))
            return self._arrays[-1][:]


_PROBE = [object()]
_REFERENCES_WHEN_FREE = sys.getrefcount(_PROBE[0])
