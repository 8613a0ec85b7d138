"""The items in which each neuron is strongest, kept while items stream by."""

from dataclasses import dataclass

import numpy as np

from src.analysis.item_latents import ItemLatents

BY = ("maximum", "mean")


@dataclass(frozen=True)
class TopItems:
    """The strongest items of each neuron, strongest first; equal ones in the order of the items.

    Attributes:
        values: [n_latents, n] float32, the item's maximum or mean; 0 where a neuron fires in fewer items.
        positions: [n_latents, n] int64, the items; -1 there.
        rows: [n_latents, n] int64, the item's row in which the neuron is strongest; -1 there.
    """

    values: np.ndarray
    positions: np.ndarray
    rows: np.ndarray

    def labels(self, label_of_item: np.ndarray) -> np.ndarray:
        """Returns the label of each item [n_latents, n], -1 where there is none."""
        return np.where(self.positions < 0, -1, label_of_item[self.positions])


class TopItemLists:
    """Keeps the strongest items of each neuron.

    Entries weaker than the weakest that a full list holds are passed over; the others wait and are merged together.

    Args:
        n_latents: of the SAE.
        n: the length of a list.
        by: `maximum`: by the largest value over an item's rows (default). `mean`: by the mean over them, as PatchSAE.

    Raises:
        ValueError: when `by` is unknown.
    """

    def __init__(self, n_latents: int, n: int = 10, by: str = "maximum") -> None:
        if by not in BY:
            raise ValueError(f"Expected top items by one of {', '.join(BY)}, got {by!r}.")
        self._by, self._shape = by, (n_latents, n)
        self._values = np.zeros(self._shape, np.float32)
        self._positions = np.full(self._shape, -1, np.int64)
        self._rows = np.full(self._shape, -1, np.int64)
        self._pending: list[tuple[np.ndarray, ...]] = []
        self._n_pending = 0

    def update(self, found: ItemLatents) -> None:
        """Adds items."""
        values = found.maxima if self._by == "maximum" else found.means.astype(np.float32)
        # Equal values may come before the weakest when their item does.
        kept = np.flatnonzero(values >= self._values[found.neuron_ids, -1])
        positions = found.positions[found.items[kept]]
        self._pending.append((found.neuron_ids[kept], values[kept], positions, found.rows[kept]))
        self._n_pending += len(kept)
        if self._n_pending > self._values.size:
            self._merge()

    def compute(self) -> TopItems:
        """Returns the lists of the items so far."""
        if self._pending:
            self._merge()
        return TopItems(self._values.copy(), self._positions.copy(), self._rows.copy())

    def _merge(self) -> None:
        n_latents, n = self._shape
        filled = self._positions >= 0
        neurons = np.broadcast_to(np.arange(n_latents)[:, None], self._shape)
        kept = (neurons[filled], self._values[filled], self._positions[filled], self._rows[filled])
        ids, values, positions, rows = map(np.concatenate, zip(kept, *self._pending, strict=True))
        self._pending, self._n_pending = [], 0
        # The bits of positive floats sort as the floats do. Sorted by position first, the stable sort keeps that order.
        by_position = np.argsort(positions, kind="stable")
        falling = np.int64(0x7FFFFFFF) - values.view(np.int32)
        keys = (ids << 31 | falling)[by_position]
        order = by_position[np.argsort(keys, kind="stable")]
        ids = ids[order]
        starts = np.searchsorted(ids, np.arange(n_latents))
        ranks = np.arange(len(ids)) - starts[ids]
        best = ranks < n
        self._values[ids[best], ranks[best]] = values[order[best]]
        self._positions[ids[best], ranks[best]] = positions[order[best]]
        self._rows[ids[best], ranks[best]] = rows[order[best]]
