"""Rows that a backbone computes from the patches of slides, or from images, whenever they are read."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from src.data.embedding.embedder import Embedder, Pictures
from src.data.feeding.rows import RowSource
from src.files import digest_text


class BackboneRows(RowSource):
    """The tokens of each picture, in the order of the pictures.

    Args:
        units: pictures that go through the backbone together, batch by batch.
        counts: the pictures of each item; items follow each other in the units.
        identity: a text that is equal where the pictures are the same.
        embedder: makes the activations.
        layer: of the backbone; the only one it gives when None.
    """

    def __init__(
        self,
        units: Sequence[Pictures],
        counts: Sequence[int],
        identity: str,
        embedder: Embedder,
        layer: str | None = None,
    ) -> None:
        backbone = embedder.backbone
        self._units, self._embedder = list(units), embedder
        self._layer = backbone.chosen[0] if layer is None else layer
        self._n_tokens = backbone.n_tokens(self._layer)
        self._ends = np.cumsum([unit.n_pictures for unit in self._units], dtype=np.int64)
        lengths = np.array(counts, np.int64) * self._n_tokens
        self.slide_starts = np.cumsum(lengths) - lengths
        self.n_rows = int(lengths.sum())
        self.n_together = embedder.batch_size * self._n_tokens
        self.d_in = backbone.d_in(self._layer)
        self.dtype = np.dtype(np.float32)
        self.identity = digest_text("\n".join([backbone.description, backbone.transform, self._layer, identity]))

    def read(self, start: int, stop: int) -> np.ndarray:
        """Returns activations [stop - start, d_in] float32, computed anew."""
        first, last = start // self._n_tokens, -(-stop // self._n_tokens)
        found = [values[self._layer] for _, values in self._embedder.embed(self._parts(first, last))]
        if not found:
            return np.empty((0, self.d_in), np.float32)
        rows = np.concatenate(found).reshape(-1, self.d_in)
        return rows[start - first * self._n_tokens : stop - first * self._n_tokens]

    def _parts(self, first: int, last: int) -> list["_Part"]:
        starts = self._ends - [unit.n_pictures for unit in self._units]
        return [
            _Part(unit, max(first - start, 0), min(last - start, unit.n_pictures))
            for unit, start, end in zip(self._units, starts.tolist(), self._ends.tolist(), strict=True)
            if start < last and first < end
        ]


@dataclass(frozen=True)
class _Part:
    """Some pictures of a unit: from `first` up to `last`."""

    unit: Pictures
    first: int
    last: int

    @property
    def n_pictures(self) -> int:
        return self.last - self.first

    def read(self, start: int, stop: int, resize: Callable[[Tensor], Tensor]) -> Tensor:
        return self.unit.read(self.first + start, self.first + stop, resize)
