"""Rows in several npy files, read as if they were one array."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

_PIECE_ROWS = 4096
REPACK = "Delete the folder; the next run packs it again."


def map_shard(path: Path, dtypes: tuple[str, ...] = ("float16", "float32")) -> np.ndarray:
    """Maps a shard, or the coords of one, read-only: [n_rows, d_in].

    Raises:
        FileNotFoundError, ValueError: when the file is missing, empty, cut short or no shard.
    """
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"Expected the shard {path}, found no such file. {REPACK}") from error
    except (ValueError, EOFError) as error:
        found = f"{path.stat().st_size:,} bytes that do not hold one ({error})"
        raise ValueError(f"Expected a whole shard at {path}, got {found}. {REPACK}") from error
    if rows.ndim != 2 or rows.dtype.name not in dtypes:
        raise ValueError(
            f"Expected rows [n, d_in] of {' or '.join(dtypes)} in {path}, got {rows.shape} of {rows.dtype}. {REPACK}"
        )
    # A plain array keeps the map open just as well, and indexes faster than numpy's subclass.
    return np.asarray(rows)


class ShardedRows:
    """The rows of some mapped shards, numbered through.

    Args:
        shards: [n_rows, d_in] each, of one width, in order; at least one.
    """

    def __init__(self, shards: Sequence[np.ndarray]) -> None:
        self.shards = shards
        self.starts = np.cumsum([0, *(len(shard) for shard in shards)])
        self.d_in = shards[0].shape[1]
        # float16 where all shards are, else float32, which holds both
        self.dtype = np.result_type(*(shard.dtype for shard in shards))

    def __len__(self) -> int:
        return int(self.starts[-1])

    def read(self, start: int, stop: int) -> np.ndarray:
        """Returns rows [stop - start, d_in]: a read-only view where one shard of that type holds them, else a copy.

        Raises:
            ValueError: when there are no such rows.
        """
        parts = list(self._parts(start, stop))
        if len(parts) == 1:
            return parts[0].astype(self.dtype, copy=False)
        return np.concatenate(parts, dtype=self.dtype) if parts else self.shards[0][:0]

    def gather(self, row_ids: np.ndarray, out: np.ndarray) -> None:
        """Copies the rows `row_ids` [n], in any order and with repeats, to `out` [n, d_in].

        Raises:
            ValueError: when a row does not exist or `out` does not fit.
        """
        if out.shape != (len(row_ids), self.d_in) or not out.flags.c_contiguous:
            raise ValueError(f"Expected a C-contiguous buffer {(len(row_ids), self.d_in)}, got {out.shape}.")
        if not len(row_ids):
            return
        self._check_range(int(row_ids.min()), int(row_ids.max()) + 1)
        owners = np.searchsorted(self.starts, row_ids, side="right") - 1
        if (owners[1:] >= owners[:-1]).all():
            bounds = np.searchsorted(owners, np.arange(len(self.shards) + 1))
            for number, (first, last) in enumerate(pairwise(bounds)):
                _take(self.shards[number], row_ids[first:last] - self.starts[number], out[first:last])
        else:
            for number in np.unique(owners):
                (positions,) = np.nonzero(owners == number)
                out[positions] = self.shards[number][row_ids[positions] - self.starts[number]]

    def _parts(self, start: int, stop: int) -> Iterator[np.ndarray]:
        self._check_range(start, stop)
        number = max(0, int(np.searchsorted(self.starts, start, side="right")) - 1)
        while start < stop:
            first, last = int(self.starts[number]), int(self.starts[number + 1])
            yield self.shards[number][start - first : min(stop, last) - first]
            start, number = last, number + 1

    def _check_range(self, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= len(self):
            raise ValueError(f"Expected rows among the {len(self)} of the store, got {start} to {stop}.")


def _take(rows: np.ndarray, row_ids: np.ndarray, out: np.ndarray) -> None:
    # numpy's "clip" writes to `out` directly, its "raise" through a copy; the caller has checked the numbers.
    if rows.dtype == out.dtype:
        np.take(rows, row_ids, axis=0, out=out, mode="clip")
        return
    for start in range(0, len(row_ids), _PIECE_ROWS):
        out[start : start + _PIECE_ROWS] = rows[row_ids[start : start + _PIECE_ROWS]]
