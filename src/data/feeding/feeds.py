"""Feeds blocks of rows: from memory, from a device, or window by window from wherever they lie."""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from functools import cached_property, partial
from typing import cast

import numpy as np
import torch

from src.data.feeding.buffers import BufferPool, copy_rows, take_rows
from src.data.feeding.epoch_order import EpochOrder, Positions, Span, Window, WindowedPermutation
from src.data.feeding.rows import RowSource
from src.prefetch import prefetch

# A chunk is long enough to be read at nearly the full speed of a disk, and a window holds some 500 of them: a batch
# mixes rows from all over the store.
WINDOW_BYTES = 128 << 20
CHUNK_BYTES = 256 << 10
# Blocks made or in the making beyond the one that is trained on.
BLOCKS_AHEAD = 2
_LOAD_BYTES = 64 << 20


def windowed_order(source: RowSource, seed: int, window_bytes: int = WINDOW_BYTES) -> EpochOrder:
    """Returns the order in which training visits rows, wherever they lie: the rows decide it, and never free memory.

    Rows that one window holds are permuted all together. More are mixed by windows of `window_bytes` (at least a
    chunk), made of chunks of CHUNK_BYTES (at least what a source makes together), so that they can be read from disk at
    its speed, and a backbone runs over whole batches.
    """
    row_bytes = source.d_in // source.n_layers * source.dtype.itemsize
    together = source.n_together
    if source.n_rows * row_bytes <= window_bytes:
        return EpochOrder(source.n_rows, seed)
    chunk = -(-max(1, CHUNK_BYTES // row_bytes) // together) * together
    return EpochOrder(source.n_rows, seed, chunk, max(1, window_bytes // (chunk * row_bytes)))


class RamFeed:
    """Gathers blocks from rows in memory; float16 rows stay so there.

    Args:
        source: the rows; read when the first block is asked for.
        n_workers: threads that gather blocks ahead; 0 gathers when a block is asked for.
    """

    def __init__(self, source: RowSource, n_workers: int = 0) -> None:
        self._source = source
        self._n_workers = n_workers
        self._blocks = BufferPool()

    def read(self, positions: Positions, blocks: Sequence[list[Span]]) -> Generator[list[torch.Tensor], None, None]:
        """Yields the blocks: a float32 tensor [n, d_in] for each of its batches.

        Args:
            positions: the order of the epoch.
            blocks: for each, the places (first, last + 1) of its batches in the order.
        """
        rows = self._rows
        tasks = (partial(self._gather, rows, positions, block) for block in blocks)
        # One more than gather: who is done early begins the next instead of waiting for its turn to be taken.
        return prefetch(tasks, self._n_workers, max(BLOCKS_AHEAD, self._n_workers + 1))

    def _gather(self, rows: np.ndarray, positions: Positions, block: list[Span]) -> list[torch.Tensor]:
        row_ids = np.concatenate([positions[start:stop] for start, stop in block])
        out = self._blocks.take((len(row_ids), rows.shape[1]))
        take_rows(rows, row_ids, out)
        return list(torch.from_numpy(out).split([stop - start for start, stop in block]))

    @cached_property
    def _rows(self) -> np.ndarray:
        rows = np.empty((self._source.n_rows, self._source.d_in), dtype=self._source.dtype)
        for start, stop, piece in _pieces(self._source):
            np.copyto(rows[start:stop], piece)
        return rows


class DeviceFeed:
    """Gathers blocks from rows on a device, in the order of the CPU's permutation, which is sent there once an epoch.

    Args:
        source: the rows; sent when the first block is asked for, as stored.
        device: where to.
    """

    def __init__(self, source: RowSource, device: torch.device) -> None:
        self._source = source
        self._device = device

    def read(self, positions: Positions, blocks: Sequence[list[Span]]) -> Generator[list[torch.Tensor], None, None]:
        """Yields the blocks, as `RamFeed.read` does, on the device."""
        rows, order = self._rows, torch.from_numpy(np.asarray(positions[: len(positions)])).to(self._device)
        for block in blocks:
            yield [rows.index_select(0, order[start:stop]).float() for start, stop in block]

    @cached_property
    def _rows(self) -> torch.Tensor:
        dtype = torch.float16 if self._source.dtype == np.float16 else torch.float32
        rows = torch.empty((self._source.n_rows, self._source.d_in), dtype=dtype, device=self._device)
        for start, stop, piece in _pieces(self._source):
            rows[start:stop] = torch.from_numpy(np.array(piece))
        return rows


class WindowFeed:
    """Reads the chunks of a window in the order of the source, and gathers shuffled blocks from there.

    With workers, the next window is read while one is in use, into a second buffer, and blocks are gathered ahead.

    Args:
        source: the rows; each is read once an epoch.
        n_workers: threads that read; one more gathers. 0 does both when a block is asked for.
    """

    def __init__(self, source: RowSource, n_workers: int = 0) -> None:
        self._source = source
        self._n_workers = n_workers
        self._windows: list[np.ndarray] = []
        self._blocks = BufferPool()

    def read(self, positions: Positions, blocks: Sequence[list[Span]]) -> Generator[list[torch.Tensor], None, None]:
        """Yields the blocks, as `RamFeed.read` does; `blocks` must ascend, `positions` be an order by windows."""
        with closing(self._gather(cast("WindowedPermutation", positions), blocks)) as gathered:
            tasks = (partial(next, gathered) for _ in blocks)
            yield from prefetch(tasks, min(1, self._n_workers), BLOCKS_AHEAD)

    def _gather(
        self, order: WindowedPermutation, blocks: Sequence[list[Span]]
    ) -> Generator[list[torch.Tensor], None, None]:
        with closing(self._load(order, blocks[0][0][0], blocks[-1][-1][1])) as windows:
            window, rows = None, np.empty(0)
            for block in blocks:
                lengths = [stop - start for start, stop in block]
                out, filled = self._blocks.take((sum(lengths), self._source.d_in)), 0
                for start, stop in block:
                    while start < stop:
                        while window is None or window.stop <= start:
                            window, rows = next(windows)
                        end = min(stop, window.stop)
                        within = window.permutation[start - window.start : end - window.start]
                        take_rows(rows, within, out[filled : filled + len(within)])
                        start, filled = end, filled + len(within)
                yield list(torch.from_numpy(out).split(lengths))
                del out

    def _load(
        self, order: WindowedPermutation, start: int, stop: int
    ) -> Generator[tuple[Window, np.ndarray], None, None]:
        n_pieces = max(1, self._n_workers)

        def tasks() -> Iterator[Callable[[], tuple[Window, np.ndarray]]]:
            for number, window in enumerate(order.windows(start, stop)):
                rows = self._buffer(number % 2, order.window_size)[: len(window.permutation)]
                ends = np.cumsum([last - first for first, last in window.spans]).tolist()
                for piece in np.array_split(np.arange(len(ends)), n_pieces):
                    yield partial(self._fill, window, rows, [(window.spans[i], ends[i]) for i in piece])

        # As many pieces ahead as a window has: while a window is in use, only the other buffer is written to.
        with closing(prefetch(tasks(), self._n_workers, n_pieces)) as pieces:
            for number, loaded in enumerate(pieces, start=1):
                if number % n_pieces == 0:
                    yield loaded

    def _fill(self, window: Window, rows: np.ndarray, spans: list[tuple[Span, int]]) -> tuple[Window, np.ndarray]:
        for (start, stop), end in spans:
            np.copyto(rows[end - (stop - start) : end], self._source.read(start, stop))
        return window, rows

    def _buffer(self, number: int, n_rows: int) -> np.ndarray:
        if number == len(self._windows):
            self._windows.append(np.empty((n_rows, self._source.d_in), dtype=self._source.dtype))
        return self._windows[number]


def read_in_order(source: RowSource, spans: Iterable[Span]) -> Generator[torch.Tensor, None, None]:
    """Yields rows [n, d_in] float32 from where they lie, piece by piece, for validation."""
    buffers = BufferPool()
    for start, stop in spans:
        batch = buffers.take((stop - start, source.d_in))
        copy_rows(source.read(start, stop), batch)
        yield torch.from_numpy(batch)
        del batch


def _pieces(source: RowSource) -> Iterator[tuple[int, int, np.ndarray]]:
    step = max(1, _LOAD_BYTES // (source.d_in * source.dtype.itemsize))
    for start in range(0, source.n_rows, step):
        stop = min(start + step, source.n_rows)
        yield start, stop, source.read(start, stop)
