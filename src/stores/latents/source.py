"""The reading side of latents, stored or computed when asked."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from src.activation_spec import ActivationSpec
from src.ops.sparse_latents import SparseLatents
from src.stores.latents.index import ItemRows, LatentItem

PIECE_ROWS = 4096


@dataclass(frozen=True)
class Places:
    """Where a neuron fires, most first; equal values in the order of the rows.

    Attributes:
        item_ids: [n] the items.
        rows: [n] int64, the place among the item's rows: its patch, or its token's position.
        values: [n] float32, above 0.
        coords: [n, 2] int32 level-0 pixels, None where items have none.
    """

    item_ids: list[str]
    rows: np.ndarray
    values: np.ndarray
    coords: np.ndarray | None


class LatentSource(ABC):
    """Latents of items: a `LatentStore`, or an SAE over activations (`EncodedLatents`).

    Attributes:
        n_latents: the number of neurons.
        spec: what the activations are of.
        items: the items by id, in the order of their rows.
    """

    n_latents: int
    spec: ActivationSpec
    items: Mapping[str, LatentItem]

    @abstractmethod
    def read(self, item_ids: Iterable[str], n_rows: int = PIECE_ROWS) -> Iterator[tuple[np.ndarray, SparseLatents]]:
        """Yields the rows of items, `n_rows` at a time, in the order in which they are stored.

        Args:
            item_ids: the items.
            n_rows: rows of a piece; pieces hold the rows of several small items, and large ones are cut. Fewer where
                GPU memory runs out.

        Yields:
            The position in `item_ids` of each row's item [n_rows] int64, and the latents [n_rows, n_latents].

        Raises:
            ValueError: when an item is not known.
        """

    @abstractmethod
    def coords(self, item_id: str) -> np.ndarray | None:
        """Returns the level-0 corners of an item's patches [n_rows, 2] int32; None where it has none."""

    def rows(self, item_id: str) -> SparseLatents:
        """Returns all rows of an item; raises ValueError when it is not known."""
        return SparseLatents.cat([latents for _, latents in self.read([item_id])])

    def places(self, neuron_id: int, limit: int | None = None, item_ids: Iterable[str] | None = None) -> Places:
        """Returns where a neuron fires, most first; reads all rows of the items for it.

        Args:
            neuron_id: the neuron.
            limit: at most so many places; all when None.
            item_ids: the items to look at; all when None.

        Raises:
            ValueError: when there is no such neuron or item.
        """
        self._check_neuron(neuron_id)
        rows = self._in_order(self.items if item_ids is None else item_ids)[1]
        found, seen = np.empty((0, 2)), 0
        for _, latents in self.read([item.item_id for item in rows.items]):
            entries = ((latents.neuron_ids == neuron_id) & (latents.values > 0)).nonzero().squeeze(1)
            # float64 holds float32 values and row counts exactly.
            values, places = latents.values[entries].double(), seen + latents.row_ids[entries].double()
            found = np.concatenate([found, torch.stack([values, places], dim=1).numpy()])
            found = found[np.lexsort((found[:, 1], -found[:, 0]))[:limit]]
            seen += latents.n_rows
        positions, within = rows.locate(found[:, 1].astype(np.int64))
        ids = [rows.items[position].item_id for position in positions]
        coords = [self.coords(item_id) for item_id in ids]
        known = [of_item[row] for of_item, row in zip(coords, within, strict=True) if of_item is not None]
        has_coords = len(known) == len(ids) > 0
        return Places(ids, within, found[:, 0].astype(np.float32), np.stack(known) if has_coords else None)

    def item_maxima(self, neuron_ids: Sequence[int], item_ids: Iterable[str]) -> np.ndarray:
        """Returns the largest value of neurons on items, [n_items, n_neurons] float32; 0 where one is silent.

        Args:
            neuron_ids: the neurons.
            item_ids: the items; all their rows are read.

        Raises:
            ValueError: when there is no such neuron or item.
        """
        wanted = list(item_ids)
        maxima = torch.zeros(len(wanted), len(neuron_ids))
        for positions, latents in self.read(wanted):
            values = latents.columns(neuron_ids)
            maxima.scatter_reduce_(0, torch.from_numpy(positions)[:, None].expand_as(values), values, "amax")
        return maxima.numpy()

    @cached_property
    def _rows(self) -> ItemRows:
        return ItemRows(list(self.items.values()))

    def _in_order(self, item_ids: Iterable[str]) -> tuple[np.ndarray, ItemRows]:
        """Returns the order of items by their rows, and their rows in it."""
        wanted = list(item_ids)
        if missing := [item_id for item_id in wanted if item_id not in self.items]:
            raise ValueError(
                f"Expected items among the {len(self.items)} of {self}, got {', '.join(map(repr, missing[:5]))} "
                f"({len(missing)} unknown): encode them (task=encode) or take them out of the split."
            )
        asked = [self.items[item_id] for item_id in wanted]
        order = np.argsort([item.start for item in asked], kind="stable")
        return order, ItemRows([asked[position] for position in order])

    def _check_neuron(self, neuron_id: int) -> None:
        if not 0 <= neuron_id < self.n_latents:
            raise ValueError(f"Expected a neuron within 0:{self.n_latents}, got {neuron_id}.")
