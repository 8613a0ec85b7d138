"""Rows that a backbone computes from the patches of slides whenever they are read."""

import logging
from collections.abc import Callable, Sequence

import numpy as np
import torch

from src.data.epoch_order import Span
from src.files import digest_array, digest_text
from src.models.backbones.base import Backbone

_LOGGER = logging.getLogger(__name__)


class BackboneRows:
    """A `RowSource` with a row for each patch, in the order of the slides and their coords.

    Args:
        slides: (slide_id, coords [n_patches, 2]: level-0 corners).
        read_patches: reads patches of a slide: (slide_id, coords [n, 2]) -> RGB uint8 [n, height, width, 3]. With
            several workers, it is called from several threads at once.
        backbone: embeds them; on the device it is to run on.
        batch_size: patches that go through the backbone at once; halved when the device runs out of memory.

    Raises:
        ValueError: when the batch size is below 1.
    """

    def __init__(
        self,
        slides: Sequence[tuple[str, np.ndarray]],
        read_patches: Callable[[str, np.ndarray], np.ndarray],
        backbone: Backbone,
        batch_size: int = 64,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"Expected embed.batch_size of at least 1, got {batch_size}.")
        self._slides = list(slides)
        self._read_patches = read_patches
        self._backbone = backbone
        self._batch_size = batch_size
        self._ends = np.cumsum([len(coords) for _, coords in self._slides], dtype=np.int64)
        self.slide_starts = self._ends - [len(coords) for _, coords in self._slides]
        self.n_rows = int(self._ends[-1]) if len(self._ends) else 0
        self.d_in = backbone.d_in
        self.dtype = np.dtype(np.float32)
        parts = [f"{slide_id} {digest_array(np.ascontiguousarray(coords))}" for slide_id, coords in self._slides]
        self.identity = digest_text("\n".join([backbone.description, backbone.transform, *parts]))

    def __len__(self) -> int:
        return self.n_rows

    def read(self, start: int, stop: int) -> np.ndarray:
        """Returns activations [stop - start, d_in] float32, computed anew."""
        rows = np.empty((stop - start, self.d_in), dtype=np.float32)
        while start < stop:
            number = int(np.searchsorted(self._ends, start, side="right"))
            first = int(self.slide_starts[number])
            end = min(stop, int(self._ends[number]))
            filled = len(rows) - (stop - start)
            self._embed(number, (start - first, end - first), rows[filled : filled + end - start])
            start = end
        return rows

    def _embed(self, number: int, span: Span, out: np.ndarray) -> None:
        slide_id, coords = self._slides[number]
        patches = torch.from_numpy(self._read_patches(slide_id, coords[slice(*span)])).permute(0, 3, 1, 2)
        done = 0
        while done < len(patches):
            try:
                activations = self._backbone.embed(patches[done : done + self._batch_size])
            except torch.cuda.OutOfMemoryError:
                if self._batch_size == 1:
                    raise
                self._batch_size //= 2
                torch.cuda.empty_cache()
                _LOGGER.warning("Out of GPU memory: going on with batches of %d patches.", self._batch_size)
                continue
            out[done : done + len(activations)] = activations.cpu().numpy()
            done += len(activations)
