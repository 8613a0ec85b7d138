"""Latents that an SAE computes from activations when they are asked for; nothing is stored."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from src.activation_spec import ActivationSpec
from src.inference import Inference
from src.models.saes.base import SAE
from src.ops.sparse_latents import SparseLatents
from src.stores.latents.index import ItemRows, LatentItem
from src.stores.latents.source import PIECE_ROWS, LatentSource
from src.stores.latents.writer import LatentWriter

Observer = Callable[[int, Tensor, SparseLatents], None]


class EncodedLatents(LatentSource):
    """A `LatentSource` for latents that are not sparse, or are needed once.

    Attributes:
        items: the items by id, in the order of their rows.
        n_latents: of the SAE.
        spec: of the activations.

    Args:
        sae: on the device of `inference`.
        items: see above; `start` and `n_rows` say which rows are theirs.
        gather: gives activations [n, d_in] float32 of row numbers [n].
        coords: gives an item's level-0 coords [n_rows, 2], or None.
        inference: how the SAE is run.
        spec: see above.
        most_rows: how many rows are encoded at once at most, however many are asked for; None: no limit.
    """

    def __init__(
        self,
        sae: SAE,
        items: Iterable[LatentItem],
        gather: Callable[[np.ndarray], np.ndarray],
        coords: Callable[[str], np.ndarray | None] | None = None,
        inference: Inference | None = None,
        spec: ActivationSpec | None = None,
        most_rows: int | None = None,
    ) -> None:
        self.items: Mapping[str, LatentItem] = {item.item_id: item for item in items}
        self.n_latents = sae.n_latents
        self.spec = spec or ActivationSpec()
        self._sae, self._gather, self._coords = sae, gather, coords
        self._inference = inference or Inference()
        self._most_rows = most_rows

    def read(self, item_ids: Iterable[str], n_rows: int = PIECE_ROWS) -> Iterator[tuple[np.ndarray, SparseLatents]]:
        """See `LatentSource.read`."""
        order, rows = self._in_order(item_ids)
        n_rows = min(n_rows, self._most_rows or n_rows)
        start = 0
        for _, latents in self._encode(rows, list(rows.spans(n_rows))):
            stop = start + latents.n_rows
            yield order[rows.between(start, stop)[0]], latents.to("cpu")
            start = stop

    def write(self, writer: LatentWriter, n_rows: int, observe: Observer | None = None) -> None:
        """Encodes all items, `n_rows` rows at a time, and hands what a killed writing has not kept to the writer.

        Args:
            writer: of these items, in their order.
            n_rows: rows of a batch; batches hold many small items, and large ones are cut.
            observe: is given every batch in order, on the device: the number of rows before it, activations, latents.
                Of what was kept these are read again, so that what is measured is the same as without a kill.
        """
        rows = self._rows
        has_coords = any(self.coords(item_id) is not None for item_id in self.items)
        spans = list(rows.spans(n_rows))
        kept = [span for span in spans if span[1] <= writer.n_kept_rows]
        device = self._inference.device
        if observe:
            for span in kept:
                observe(span[0], self._activations(rows, *span).to(device), writer.kept(*span).to(device))
        start = kept[-1][1] if kept else 0
        for activations, latents in self._encode(rows, spans[len(kept) :], "Encoding"):
            if observe:
                observe(start, activations, latents)
            stop = start + latents.n_rows
            writer.append(latents, self._coords_of(*rows.between(start, stop)) if has_coords else None, start)
            start = stop

    def _encode(
        self, rows: ItemRows, spans: Sequence[tuple[int, int]], description: str = ""
    ) -> Iterator[tuple[Tensor, SparseLatents]]:
        def encode(batch: Tensor) -> tuple[Tensor, SparseLatents]:
            return batch, self._sae.encode(batch)

        reads = (partial(self._activations, rows, *span) for span in spans)
        with self._sae.unchanged():
            yield from self._inference.run(encode, reads, description, len(spans))

    def _coords_of(self, positions: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """Returns the coords of rows [n, 2], given the positions of their items; -1 where an item has none."""
        coords = np.full((len(numbers), 2), -1, np.int32)
        starts = np.unique(positions, return_index=True)[1].tolist()
        for start, stop in zip(starts, [*starts[1:], len(numbers)], strict=True):
            item = self._rows.items[int(positions[start])]
            of_item = self.coords(item.item_id)
            if of_item is not None:
                coords[start:stop] = of_item[numbers[start:stop] - item.start]
        return coords

    def coords(self, item_id: str) -> np.ndarray | None:
        """Returns the level-0 corners of an item's patches [n_rows, 2]; None where it has none."""
        return None if self._coords is None else self._coords(item_id)

    def __str__(self) -> str:
        return "the activations"

    def _activations(self, rows: ItemRows, start: int, stop: int) -> Tensor:
        return torch.from_numpy(self._gather(rows.between(start, stop)[1]))
