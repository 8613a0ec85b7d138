"""Rows that a backbone computes from the patches of slides whenever they are read."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from src.data.feeding.rows import RowSource
from src.data.slides.patch_embedder import PatchEmbedder
from src.files import digest_array, digest_text
from src.models.backbones.base import Backbone


class BackboneRows(RowSource):
    """A row for each patch, in the order of the slides and their coords.

    Args:
        slides: (item_id, coords [n_patches, 2]: level-0 corners).
        read_patches: reads patches of a slide: (item_id, coords [n, 2]) -> RGB uint8 [n, height, width, 3]; asked for
            a batch at a time. With several workers, it is called from several threads at once.
        backbone: embeds them; on the device it is to run on.
        batch_size: patches that are read, and go through the backbone, at once; see `PatchEmbedder`.
    """

    def __init__(
        self,
        slides: Sequence[tuple[str, np.ndarray]],
        read_patches: Callable[[str, np.ndarray], np.ndarray],
        backbone: Backbone,
        batch_size: int = 64,
    ) -> None:
        self._slides = list(slides)
        self._read_patches = read_patches
        self._embedder = PatchEmbedder(backbone, batch_size)
        self._ends = np.cumsum([len(coords) for _, coords in self._slides], dtype=np.int64)
        self.slide_starts = self._ends - [len(coords) for _, coords in self._slides]
        self.n_rows = int(self._ends[-1]) if len(self._ends) else 0
        self.d_in = backbone.d_in()
        self.dtype = np.dtype(np.float32)
        parts = [f"{item_id} {digest_array(np.ascontiguousarray(coords))}" for item_id, coords in self._slides]
        self.identity = digest_text("\n".join([backbone.description, backbone.transform, *parts]))

    def read(self, start: int, stop: int) -> np.ndarray:
        """Returns activations [stop - start, d_in] float32, computed anew."""
        rows = np.empty((stop - start, self.d_in), dtype=np.float32)
        while start < stop:
            number = int(np.searchsorted(self._ends, start, side="right"))
            first = int(self.slide_starts[number])
            end = min(stop, int(self._ends[number]))
            filled = len(rows) - (stop - start)
            item_id, coords = self._slides[number]
            out = rows[filled : filled + end - start]
            self._embedder.embed(partial(self._read_patches, item_id), coords[start - first : end - first], out)
            start = end
        return rows
