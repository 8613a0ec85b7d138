"""The reading side of latents, stored or computed when asked."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from src.activation_spec import ActivationSpec
from src.ops.sparse_latents import SparseLatents
from src.stores.latents.index import LatentItem

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


class LatentSource(Protocol):
    """Latents of items: a `LatentStore`, or an SAE over activations (`EncodedLatents`)."""

    @property
    def n_latents(self) -> int:
        """The number of neurons."""
        ...

    @property
    def spec(self) -> ActivationSpec:
        """What the activations are of."""
        ...

    @property
    def items(self) -> Mapping[str, LatentItem]:
        """The items by id, in the order of their rows."""
        ...

    def read(self, item_ids: Iterable[str], n_rows: int = PIECE_ROWS) -> Iterator[tuple[np.ndarray, SparseLatents]]:
        """Yields the rows of items, `n_rows` at a time, in the order in which they are stored.

        Args:
            item_ids: the items.
            n_rows: rows of a piece; pieces hold the rows of several small items, and large ones are cut.

        Yields:
            The position in `item_ids` of each row's item [n_rows] int64, and the latents [n_rows, n_latents].

        Raises:
            ValueError: when an item is not known.
        """
        ...

    def rows(self, item_id: str) -> SparseLatents:
        """Returns all rows of an item."""
        ...

    def coords(self, item_id: str) -> np.ndarray | None:
        """Returns the level-0 corners of an item's patches [n_rows, 2]; None where it has none."""
        ...

    def places(self, neuron_id: int, limit: int | None = None, item_ids: Iterable[str] | None = None) -> Places:
        """Returns where a neuron fires, most first.

        Args:
            neuron_id: the neuron.
            limit: at most so many places; all when None.
            item_ids: the items to look at; all when None.

        Raises:
            ValueError: when there is no such neuron or item.
        """
        ...


def known_items(items: Mapping[str, LatentItem], item_ids: Iterable[str], source: str) -> list[LatentItem]:
    """Returns items by their ids.

    Raises:
        ValueError: when one is not among them.
    """
    wanted = list(item_ids)
    if missing := [item_id for item_id in wanted if item_id not in items]:
        raise ValueError(
            f"Expected items among the {len(items)} of {source}, got {', '.join(map(repr, missing[:5]))} "
            f"({len(missing)} unknown): encode them (task=encode) or take them out of the split."
        )
    return [items[item_id] for item_id in wanted]


def check_neuron(neuron_id: int, n_latents: int) -> None:
    """Raises ValueError when there is no such neuron."""
    if not 0 <= neuron_id < n_latents:
        raise ValueError(f"Expected a neuron within 0:{n_latents}, got {neuron_id}.")


def scan_places(source: LatentSource, neuron_id: int, limit: int | None, item_ids: Iterable[str]) -> Places:
    """Finds the places of a neuron by reading all rows; see `LatentSource.places`."""
    check_neuron(neuron_id, source.n_latents)
    wanted = sorted(item_ids, key=lambda item_id: source.items[item_id].start)
    found, seen = [np.empty((0, 3))], 0
    for positions, latents in source.read(wanted):
        entries = ((latents.neuron_ids == neuron_id) & (latents.values > 0)).nonzero().squeeze(1)
        rows = latents.row_ids[entries].numpy()
        # float64 holds float32 values and row counts exactly.
        found.append(np.stack([latents.values[entries].double().numpy(), positions[rows], seen + rows], axis=1))
        seen += latents.n_rows
        if limit is not None:
            found = [_largest(np.concatenate(found), limit)]
    best = _largest(np.concatenate(found), limit)
    lengths = np.array([source.items[item_id].n_rows for item_id in wanted], np.int64)
    codes = best[:, 1].astype(np.int64)
    rows = best[:, 2].astype(np.int64) - (lengths.cumsum() - lengths)[codes]
    ids = [wanted[code] for code in codes]
    coords = [source.coords(item_id) for item_id in ids]
    known = [place[row] for place, row in zip(coords, rows, strict=True) if place is not None]
    return Places(ids, rows, best[:, 0].astype(np.float32), np.stack(known) if len(known) == len(ids) > 0 else None)


def _largest(found: np.ndarray, limit: int | None) -> np.ndarray:
    return found[np.lexsort((found[:, 2], -found[:, 0]))[:limit]]
