"""The rows of many items laid end to end, so that batches are as large for small items as for large ones."""

from collections.abc import Iterator, Sequence

import numpy as np

from src.stores.latents.index import LatentItem


class ItemRows:
    """Row numbers of items in the order given.

    Attributes:
        n_rows: of all items together.
        starts: [n_items] the number of each item's first row.

    Args:
        items: `start` and `n_rows` say which rows are theirs.
    """

    def __init__(self, items: Sequence[LatentItem]) -> None:
        self.starts = np.array([item.start for item in items], np.int64)
        self._lengths = np.array([item.n_rows for item in items], np.int64)
        self._ends = self._lengths.cumsum()
        self.n_rows = int(self._lengths.sum())

    def between(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns of the rows `start:stop`, counted end to end, the positions of their items, and their numbers."""
        positions, within = self.locate(np.arange(start, stop))
        return positions, within + self.starts[positions]

    def locate(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns of rows, counted end to end, the positions of their items, and their places in them."""
        positions = np.searchsorted(self._ends, rows, side="right")
        return positions, rows - (self._ends - self._lengths)[positions]

    def spans(self, n_rows: int) -> Iterator[tuple[int, int]]:
        """Yields (start, stop) of pieces of `n_rows` rows."""
        return ((start, min(start + n_rows, self.n_rows)) for start in range(0, self.n_rows, n_rows))
