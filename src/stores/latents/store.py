"""A finished store of latents, mapped from disk."""

from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

import numpy as np

from src.ops.sparse_latents import SparseLatents
from src.stores.latents.by_neuron import ENTRY
from src.stores.latents.index import BY_NEURON_FILE, NEURON_OFFSETS_FILE, read_index
from src.stores.latents.item_rows import ItemRows
from src.stores.latents.shards import Shards
from src.stores.latents.source import PIECE_ROWS, LatentSource, Places


class LatentStore(LatentSource):
    """A `LatentSource` over a folder that `LatentWriter` wrote. Only its index is read before latents are asked for.

    Attributes:
        index: what the store says of itself and of its items.

    Args:
        path: the folder.

    Raises:
        FileNotFoundError: when there is no finished store.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.index = read_index(path)
        self.n_latents, self.spec, self.items = self.index.n_latents, self.index.spec, self.index.items

    def read(self, item_ids: Iterable[str], n_rows: int = PIECE_ROWS) -> Iterator[tuple[np.ndarray, SparseLatents]]:
        """See `LatentSource.read`."""
        order, items = self._in_order(item_ids)
        rows = ItemRows(items)
        for span in rows.spans(n_rows):
            positions, numbers = rows.between(*span)
            yield order[positions], self._shards.rows(numbers)

    def coords(self, item_id: str) -> np.ndarray | None:
        """Returns the level-0 corners of an item's patches [n_rows, 2] int32; None where they are not known.

        Raises:
            ValueError: when the store does not hold the item.
        """
        _, (item,) = self._in_order([item_id])
        return self._shards.coords(np.arange(item.start, item.start + item.n_rows))

    def places(self, neuron_id: int, limit: int | None = None, item_ids: Iterable[str] | None = None) -> Places:
        """See `LatentSource.places`: a seek, or with encode.by_neuron=false a pass over the rows."""
        if self._by_neuron is None:
            return super().places(neuron_id, limit, item_ids)
        self._check_neuron(neuron_id)
        entries, offsets = self._by_neuron
        start, stop = (int(offset) for offset in offsets[neuron_id : neuron_id + 2])
        found = entries[start : stop if limit is None or item_ids is not None else min(stop, start + limit)]
        rows = found["row"].astype(np.int64)
        positions, within = self._rows.locate(rows)
        kept = found["value"] > 0
        if item_ids is not None:
            kept &= np.isin(
                self._rows.starts[positions], [item.start for item in self._in_order(item_ids)[1] if item.n_rows]
            )
        kept = kept.nonzero()[0][:limit]
        ids = [self._ids[position] for position in positions[kept]]
        return Places(ids, within[kept], np.array(found["value"][kept]), self._shards.coords(rows[kept]))

    @cached_property
    def _shards(self) -> Shards:
        return Shards(self.path, self.index.shards, self.n_latents)

    @cached_property
    def _by_neuron(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Every entry by neuron, most first, and where each neuron begins; None where they were not written."""
        if not (self.path / NEURON_OFFSETS_FILE).is_file():
            return None
        offsets = np.load(self.path / NEURON_OFFSETS_FILE)
        if not offsets[-1]:
            return np.empty(0, ENTRY), offsets  # an empty file cannot be mapped
        return np.load(self.path / BY_NEURON_FILE, mmap_mode="r"), offsets

    @cached_property
    def _rows(self) -> ItemRows:
        return ItemRows(list(self.items.values()))

    @cached_property
    def _ids(self) -> list[str]:
        return list(self.items)

    def __str__(self) -> str:
        return str(self.path)
