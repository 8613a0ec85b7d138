"""The rows of many items laid end to end, so that batches are as large for small items as for large ones."""

from collections.abc import Iterator, Sequence

import numpy as np

from src.stores.latents.index import LatentItem


class ItemRows:
    """Row numbers of items in the order given.

    Attributes:
        n_rows: of all items together.

    Args:
        items: `start` and `n_rows` say which rows are theirs.
    """

    def __init__(self, items: Sequence[LatentItem]) -> None:
        lengths = np.array([item.n_rows for item in items], np.int64)
        self._ends = lengths.cumsum()
        self._shifts = np.array([item.start for item in items], np.int64) - (self._ends - lengths)
        self.n_rows = int(lengths.sum())

    def between(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns of the rows `start:stop`, counted end to end, the positions of their items, and their numbers."""
        within = np.arange(start, stop)
        positions = np.searchsorted(self._ends, within, side="right")
        return positions, within + self._shifts[positions]

    def spans(self, n_rows: int) -> Iterator[tuple[int, int]]:
        """Yields (start, stop) of pieces of `n_rows` rows."""
        return ((start, min(start + n_rows, self.n_rows)) for start in range(0, self.n_rows, n_rows))
