"""A finished store of latents, mapped from disk."""

from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

import numpy as np

from src.activation_spec import ActivationSpec
from src.ops.sparse_latents import SparseLatents
from src.stores.latents.by_neuron import ENTRY
from src.stores.latents.index import BY_NEURON_FILE, NEURON_OFFSETS_FILE, LatentItem, read_index
from src.stores.latents.item_rows import ItemRows
from src.stores.latents.shards import Shards
from src.stores.latents.source import PIECE_ROWS, Places, check_neuron, known_items, scan_places


class LatentStore:
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

    @property
    def n_latents(self) -> int:
        """The number of neurons."""
        return self.index.n_latents

    @property
    def spec(self) -> ActivationSpec:
        """What the activations are of."""
        return self.index.spec

    @property
    def items(self) -> dict[str, LatentItem]:
        """The items by id, in the order of their rows."""
        return self.index.items

    def read(self, item_ids: Iterable[str], n_rows: int = PIECE_ROWS) -> Iterator[tuple[np.ndarray, SparseLatents]]:
        """See `LatentSource.read`."""
        asked = self._known(item_ids)
        order = np.argsort([item.start for item in asked], kind="stable")
        rows = ItemRows([asked[i] for i in order])
        for span in rows.spans(n_rows):
            positions, numbers = rows.between(*span)
            yield order[positions], self._shards.rows(numbers)

    def rows(self, item_id: str) -> SparseLatents:
        """Returns all rows of an item.

        Raises:
            ValueError: when the store does not hold the item, or a file is damaged.
        """
        (item,) = self._known([item_id])
        return self._shards.rows(np.arange(item.start, item.start + item.n_rows))

    def coords(self, item_id: str) -> np.ndarray | None:
        """Returns the level-0 corners of an item's patches [n_rows, 2] int32; None where they are not known.

        Raises:
            ValueError: when the store does not hold the item.
        """
        (item,) = self._known([item_id])
        return self._shards.coords(np.arange(item.start, item.start + item.n_rows))

    def places(self, neuron_id: int, limit: int | None = None, item_ids: Iterable[str] | None = None) -> Places:
        """See `LatentSource.places`: a seek, or with encode.by_neuron=false a pass over the rows."""
        wanted = None if item_ids is None else [item.item_id for item in self._known(item_ids)]
        if self._by_neuron is None:
            return scan_places(self, neuron_id, limit, self.items if wanted is None else wanted)
        check_neuron(neuron_id, self.n_latents)
        entries, offsets = self._by_neuron
        start, stop = (int(offset) for offset in offsets[neuron_id : neuron_id + 2])
        found = entries[start : stop if limit is None or wanted is not None else min(stop, start + limit)]
        rows = found["row"].astype(np.int64)
        codes = np.searchsorted(self._starts, rows, side="right") - 1
        kept = found["value"] > 0
        if wanted is not None:
            kept &= np.isin(codes, [self._code[item_id] for item_id in wanted])
        kept = kept.nonzero()[0][:limit]
        codes, rows = codes[kept], rows[kept]
        values = np.array(found["value"][kept])
        return Places(
            [self._ids[code] for code in codes], rows - self._starts[codes], values, self._shards.coords(rows)
        )

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
    def _ids(self) -> list[str]:
        return list(self.items)

    @cached_property
    def _code(self) -> dict[str, int]:
        return {item_id: code for code, item_id in enumerate(self._ids)}

    @cached_property
    def _starts(self) -> np.ndarray:
        return self.index.table["start"].to_numpy(np.int64)

    def _known(self, item_ids: Iterable[str]) -> list[LatentItem]:
        return known_items(self.items, item_ids, str(self.path))
