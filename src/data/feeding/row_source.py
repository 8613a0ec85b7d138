"""What rows can be read from, and rows grouped by image."""

from typing import Protocol

import numpy as np


class RowSource(Protocol):
    """Rows of activations, numbered from 0 slide by slide, that may lie on disk or be computed when read."""

    @property
    def n_rows(self) -> int:
        """The number of rows."""
        ...

    @property
    def d_in(self) -> int:
        """The width of a row."""
        ...

    @property
    def dtype(self) -> np.dtype:
        """What `read` gives: float16 or float32."""
        ...

    @property
    def identity(self) -> str:
        """A text that is equal where row numbers mean the same rows."""
        ...

    @property
    def slide_starts(self) -> np.ndarray:
        """The first row of each slide, ascending: [n_slides] int64."""
        ...

    def read(self, start: int, stop: int) -> np.ndarray:
        """Returns rows [stop - start, d_in], perhaps a read-only view."""
        ...


class ImageRows:
    """The images of a source, each read as one row: its `n_tokens` consecutive rows side by side.

    Args:
        source: rows, those of an image together.
        n_tokens: rows an image.

    Raises:
        ValueError: when the rows of a slide are no multiple of n_tokens.
    """

    def __init__(self, source: RowSource, n_tokens: int) -> None:
        if n_tokens < 1:
            raise ValueError(f"Expected train.n_tokens of at least 1 row an image, got {n_tokens}.")
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

    def read(self, start: int, stop: int) -> np.ndarray:
        """Returns images [stop - start, n_tokens * d_in]."""
        return self._source.read(start * self._n_tokens, stop * self._n_tokens).reshape(-1, self.d_in)
