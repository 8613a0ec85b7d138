"""Rows that a backbone computes from the patches of slides, or from images, whenever they are read."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from src.data.embedding.embedder import Embedder, Pictures
from src.data.feeding.rows import RowSource
from src.files import digest_text


class BackboneRows(RowSource):
    """The tokens of each picture, in the order of the pictures; of several layers side by side.

    Args:
        units: pictures that go through the backbone together, batch by batch.
        counts: the pictures of each item; items follow each other in the units.
        identity: a text that is equal where the pictures are the same.
        embedder: makes the activations of the layers that its backbone was made for.

    Raises:
        ValueError: when these layers have other widths or numbers of tokens than each other.
    """

    def __init__(self, units: Sequence[Pictures], counts: Sequence[int], identity: str, embedder: Embedder) -> None:
        backbone = embedder.backbone
        self._units, self._embedder = list(units), embedder
        shapes = {layer: (backbone.n_tokens(layer), backbone.d_in(layer)) for layer in backbone.chosen}
        if len(set(shapes.values())) != 1:
            raise ValueError(
                f"Expected layers with equally many tokens of one width on one stream, got {shapes} (tokens, width). "
                "Train on them one by one."
            )
        ((self._n_tokens, width),) = set(shapes.values())
        self.n_layers, self.d_in = len(shapes), len(shapes) * width
        self._ends = np.cumsum([unit.n_pictures for unit in self._units], dtype=np.int64)
        lengths = np.array(counts, np.int64) * self._n_tokens
        self.slide_starts = np.cumsum(lengths) - lengths
        self.n_rows = int(lengths.sum())
        self.n_together = embedder.batch_size * self._n_tokens
        self.dtype = np.dtype(np.float32)
        # Whatever the layer: a row number means the same token of the same picture.
        model = replace(backbone.spec(backbone.chosen[0]), layer="any")
        self.identity = digest_text(f"{model.to_json()}\n{identity}")

    def read(self, start: int, stop: int) -> np.ndarray:
        """Returns activations [stop - start, d_in] float32, computed anew."""
        first, last = start // self._n_tokens, -(-stop // self._n_tokens)
        embedded = self._embedder.embed(self._parts(first, last))
        found = [np.concatenate(list(values.values()), axis=2) for _, values in embedded]
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
