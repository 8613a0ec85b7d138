"""Latents that an SAE computes from activations when they are asked for; nothing is stored."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial

import numpy as np
import torch

from src.activation_spec import ActivationSpec
from src.inference import Inference
from src.models.saes.base import SAE
from src.ops.sparse_latents import SparseLatents
from src.stores.latents.index import LatentItem
from src.stores.latents.item_rows import ItemRows
from src.stores.latents.source import PIECE_ROWS, Places, known_items, scan_places


class EncodedLatents:
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
    """

    def __init__(
        self,
        sae: SAE,
        items: Iterable[LatentItem],
        gather: Callable[[np.ndarray], np.ndarray],
        coords: Callable[[str], np.ndarray | None] | None = None,
        inference: Inference | None = None,
        spec: ActivationSpec | None = None,
    ) -> None:
        self.items: Mapping[str, LatentItem] = {item.item_id: item for item in items}
        self.n_latents = sae.n_latents
        self.spec = spec or ActivationSpec()
        self._sae, self._gather, self._coords = sae, gather, coords
        self._inference = inference or Inference()

    def read(self, item_ids: Iterable[str], n_rows: int = PIECE_ROWS) -> Iterator[tuple[np.ndarray, SparseLatents]]:
        """See `LatentSource.read`; pieces are smaller where GPU memory runs out."""
        asked = known_items(self.items, item_ids, "the activations")
        order = np.argsort([item.start for item in asked], kind="stable")
        rows = ItemRows([asked[i] for i in order])
        reads = (partial(self._activations, rows, *span) for span in rows.spans(n_rows))
        start = 0
        for latents in self._inference.run(self._sae.encode, reads):
            stop = start + latents.n_rows
            yield order[rows.between(start, stop)[0]], latents.to("cpu")
            start = stop

    def rows(self, item_id: str) -> SparseLatents:
        """Returns all rows of an item."""
        return SparseLatents.cat([latents for _, latents in self.read([item_id])])

    def coords(self, item_id: str) -> np.ndarray | None:
        """Returns the level-0 corners of an item's patches [n_rows, 2]; None where it has none."""
        return None if self._coords is None else self._coords(item_id)

    def places(self, neuron_id: int, limit: int | None = None, item_ids: Iterable[str] | None = None) -> Places:
        """See `LatentSource.places`; encodes all rows that are asked for."""
        return scan_places(self, neuron_id, limit, self.items if item_ids is None else item_ids)

    def _activations(self, rows: ItemRows, start: int, stop: int) -> torch.Tensor:
        return torch.from_numpy(self._gather(rows.between(start, stop)[1]))
