"""What rows can be read from: those of some items of a packed store, and rows grouped by image."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from src.files import digest_text
from src.stores.activations.store import ActivationStore

DEFAULT_RAM_BYTES = 2 << 30


class RowSource(Protocol):
    """Rows of activations, numbered from 0 slide by slide, that may lie on disk or be computed when read.

    Attributes:
        n_rows: the number of rows.
        d_in: the width of a row.
        dtype: what `read` gives: float16 or float32.
        identity: a text that is equal where row numbers mean the same rows.
        slide_starts: the first row of each slide, ascending: [n_slides] int64.
        n_together: consecutive rows that are made at once; more than 1 where a backbone computes them.
        n_layers: how many layers' activations lie side by side in a row, all of one width; the order of training is
            that of one layer alone.
    """

    n_rows: int
    d_in: int
    dtype: np.dtype
    identity: str
    slide_starts: np.ndarray
    n_together: int = 1
    n_layers: int = 1

    def read(self, start: int, stop: int) -> np.ndarray:
        """Returns rows [stop - start, d_in], perhaps a read-only view."""
        ...


class StoreRows(RowSource):
    """The rows of some slides of a store, numbered from 0 in the order of the slides.

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


class ImageRows(RowSource):
    """The images of a source, each read as one row: its `n_tokens` consecutive rows side by side.

    Args:
        source: rows, those of an image together.
        n_tokens: rows an image.

    Raises:
        ValueError: when the rows of a slide are no multiple of n_tokens.
    """

    def __init__(self, source: RowSource, n_tokens: int) -> None:
        lengths = np.diff(source.slide_starts, append=source.n_rows)
        if (lengths % n_tokens).any():
            bad = int(lengths[np.argmax(lengths % n_tokens > 0)])
            raise ValueError(
                f"Expected a multiple of train.n_tokens={n_tokens} rows a slide, got {bad} in one: set train.n_tokens "
                "to the tokens of an image, or train.batch_unit=rows."
            )
        self._source, self._n_tokens = source, n_tokens
        self.n_rows = source.n_rows // n_tokens
        self.d_in = source.d_in * n_tokens
        self.dtype = source.dtype
        self.identity = f"{source.identity}/{n_tokens}"
        self.slide_starts = source.slide_starts // n_tokens
        self.n_together = -(-source.n_together // n_tokens)
        self.n_layers = source.n_layers

    def read(self, start: int, stop: int) -> np.ndarray:
        """Returns images [stop - start, n_tokens * d_in]."""
        return self._source.read(start * self._n_tokens, stop * self._n_tokens).reshape(-1, self.d_in)


def rows_an_item(source: RowSource) -> int:
    """Returns how many rows each item of a source has: the tokens of an image.

    Raises:
        ValueError: when items differ.
    """
    lengths = np.unique(np.diff(source.slide_starts, append=source.n_rows))
    if len(lengths) != 1:
        raise ValueError(
            f"Expected items of equally many rows for train.batch_unit=images, got {lengths[:5].tolist()}: give "
            "train.n_tokens=<rows an image>, or train.batch_unit=rows."
        )
    return int(lengths[0])
