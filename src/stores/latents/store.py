"""A finished store of latents, mapped from disk."""

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from src.activation_spec import ActivationSpec
from src.ops.sparse_latents import SparseLatents
from src.stores.latents.index import BY_NEURON_FILE, NEURON_OFFSETS_FILE, read_index, read_items
from src.stores.latents.shards import Shards
from src.stores.latents.source import PIECE_ROWS, LatentSource, Places


class LatentStore(LatentSource):
    """A `LatentSource` over a folder that `LatentWriter` wrote. Only its index is read before latents are asked for.

    Attributes:
        head: what the store says of itself, see `read_index`.

    Args:
        path: the folder.

    Raises:
        FileNotFoundError: when there is no finished store.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.head = read_index(self.path)
        self.n_latents, self.spec = self.head["n_latents"], ActivationSpec.from_dict(self.head["spec"])
        self.items = read_items(self.path)

    def read(self, item_ids: Iterable[str], n_rows: int = PIECE_ROWS) -> Iterator[tuple[np.ndarray, SparseLatents]]:
        """See `LatentSource.read`."""
        order, rows = self._in_order(item_ids)
        for span in rows.spans(n_rows):
            positions, numbers = rows.between(*span)
            yield order[positions], self._shards.rows(numbers)

    def coords(self, item_id: str) -> np.ndarray | None:
        """Returns the level-0 corners of an item's patches [n_rows, 2] int32; None where they are not known.

        Raises:
            ValueError: when the store does not hold the item.
        """
        rows = self._in_order([item_id])[1]
        return self._shards.coords(rows.between(0, rows.n_rows)[1])

    def places(self, neuron_id: int, limit: int | None = None, item_ids: Iterable[str] | None = None) -> Places:
        """See `LatentSource.places`: a seek, or with encode.by_neuron=false a pass over the rows."""
        if self._by_neuron is None:
            return super().places(neuron_id, limit, item_ids)
        self._check_neuron(neuron_id)
        entries, offsets = self._by_neuron
        found = entries[slice(*offsets[neuron_id : neuron_id + 2].tolist())]
        if item_ids is None:
            found = found[:limit]
        else:
            asked = [item.start for item in self._in_order(item_ids)[1].items if item.n_rows]
            positions, _ = self._rows.locate(found["row"])
            found = found[np.isin(self._rows.starts[positions], asked)][:limit]
        found = found[found["value"] > 0]  # those that are 0 are the last
        rows = found["row"].astype(np.int64)
        positions, within = self._rows.locate(rows)
        ids = [self._rows.items[position].item_id for position in positions]
        return Places(ids, within, np.array(found["value"]), self._shards.coords(rows))

    def item_maxima(self, neuron_ids: Sequence[int], item_ids: Iterable[str]) -> np.ndarray:
        """See `LatentSource.item_maxima`: a seek a neuron, or with encode.by_neuron=false a pass over the rows."""
        wanted = list(item_ids)
        if self._by_neuron is None:
            return super().item_maxima(neuron_ids, wanted)
        self._in_order(wanted)  # refuses unknown items
        numbers = {item_id: number for number, item_id in enumerate(self.items)}
        asked = [numbers[item_id] for item_id in wanted]
        entries, offsets = self._by_neuron
        maxima = np.zeros((len(wanted), len(neuron_ids)), np.float32)
        for column, neuron_id in enumerate(neuron_ids):
            self._check_neuron(neuron_id)
            found = entries[slice(*offsets[neuron_id : neuron_id + 2].tolist())]
            of_items = np.zeros(len(self.items), np.float32)
            np.maximum.at(of_items, self._rows.locate(found["row"])[0], found["value"])
            maxima[:, column] = of_items[asked]
        return maxima

    @cached_property
    def _shards(self) -> Shards:
        return Shards(self.path, self.head["shards"], self.n_latents)

    @cached_property
    def _by_neuron(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Every entry by neuron, most first, and where each neuron begins; None where they were not written."""
        if not (self.path / NEURON_OFFSETS_FILE).is_file():
            return None
        offsets = np.load(self.path / NEURON_OFFSETS_FILE)
        # A file without entries cannot be mapped.
        return np.load(self.path / BY_NEURON_FILE, mmap_mode="r" if offsets[-1] else None), offsets

    def __str__(self) -> str:
        return str(self.path)
