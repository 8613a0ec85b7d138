"""Feeds blocks from rows that are held as one array in memory, or as one tensor on a device."""

from collections.abc import Generator, Iterable, Iterator, Sequence
from functools import cached_property, partial

import numpy as np
import torch

from src.data.feeding.buffers import BufferPool, copy_rows, take_rows
from src.data.feeding.epoch_order import Positions, Span
from src.data.feeding.rows import RowSource
from src.data.feeding.windows import BLOCKS_AHEAD
from src.prefetch import prefetch

_LOAD_BYTES = 64 << 20


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
