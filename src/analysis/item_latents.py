"""Rows of latents gathered by item and neuron: what all statistics of items are made of."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from src.ops.sparse_latents import SparseLatents


@dataclass(frozen=True)
class ItemLatents:
    """The neurons that fire in some items: an entry for each item and neuron, by item, then by neuron.

    Attributes:
        positions: [n_items] int64, the items, as `LatentSource.read` numbers them.
        n_rows: [n_items] int64, all rows of each item.
        items: [n_entries] int64, the place of each entry's item in `positions`.
        neuron_ids: [n_entries] int64.
        sums: [n_entries] float64, the sum over the item's rows.
        maxima: [n_entries] float32, the largest value, above 0.
        rows: [n_entries] int64, the item's first row with that value.
        n_active: [n_entries] int64, the item's rows above 0.
        n_above: [n_entries] int64, the item's rows above the threshold.
    """

    positions: np.ndarray
    n_rows: np.ndarray
    items: np.ndarray
    neuron_ids: np.ndarray
    sums: np.ndarray
    maxima: np.ndarray
    rows: np.ndarray
    n_active: np.ndarray
    n_above: np.ndarray

    @property
    def means(self) -> np.ndarray:
        """[n_entries] float64, the mean over the item's rows, zeros included."""
        return self.sums / self.n_rows[self.items]


def gather_items(pieces: Iterable[tuple[np.ndarray, SparseLatents]], threshold: float = 0.0) -> Iterator[ItemLatents]:
    """Yields items once all of their rows have been seen.

    Args:
        pieces: rows as `LatentSource.read` yields them, the rows of an item one after the other; pieces of any size.
        threshold: what `n_above` counts the rows above.
    """
    opened: ItemLatents | None = None  # the last item of a piece may go on in the next
    for codes, latents in pieces:
        if not len(codes):
            continue
        found = _gather(codes, latents, threshold)
        if opened is not None and opened.positions[0] == found.positions[0]:
            found = _continue(opened, found)
        elif opened is not None:
            yield opened
        last = len(found.positions) - 1
        opened = _items(found, last, last + 1)
        if last:
            yield _items(found, 0, last)
    if opened is not None:
        yield opened


def segments(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the stable order that sorts integers of at least 0, and where each run of equal ones begins in it."""
    n_bits = len(keys).bit_length()
    if int(keys.max(initial=0)).bit_length() + n_bits < 64:
        # Key and place in one number: a plain sort of numbers is several times faster than one of places.
        packed = np.sort(keys << n_bits | np.arange(len(keys)))
        order, ordered = packed & ((1 << n_bits) - 1), packed >> n_bits
    else:
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
    starts = np.flatnonzero(ordered[1:] != ordered[:-1]) + 1
    return order, np.concatenate([np.zeros(min(len(keys), 1), np.int64), starts])


def _gather(codes: np.ndarray, latents: SparseLatents, threshold: float) -> ItemLatents:
    """Gathers the rows of a piece."""
    begins = np.concatenate([[0], np.flatnonzero(codes[1:] != codes[:-1]) + 1])
    positions, n_rows = codes[begins], np.diff(begins, append=len(codes))
    items_of_rows = np.repeat(np.arange(len(begins)), n_rows)
    rows = np.repeat(np.arange(len(codes)), latents.row_offsets.diff().numpy())
    values, neuron_ids = latents.values.numpy().astype(np.float32, copy=False), latents.neuron_ids.numpy()
    active = values > 0
    if not active.all():  # a listed entry may be zero
        values, rows, neuron_ids = values[active], rows[active], neuron_ids[active]

    keys = (items_of_rows * latents.n_latents)[rows] + neuron_ids
    order, starts = segments(keys)
    ordered, first = values[order], order[starts]
    largest, strongest = _largest(ordered, starts)
    strongest = rows[order[strongest]]
    items = items_of_rows[rows[first]]
    return ItemLatents(
        positions,
        n_rows,
        items,
        neuron_ids[first].astype(np.int64),
        _add(ordered, starts, np.float64),
        largest,
        strongest - begins[items],
        np.diff(starts, append=len(order)),
        _add(ordered > threshold, starts, np.int64),
    )


def _continue(opened: ItemLatents, found: ItemLatents) -> ItemLatents:
    """Adds the earlier rows of the first item, which a piece before held."""
    first, others = _items(found, 0, 1), _items(found, 1, len(found.positions))
    neuron_ids = np.concatenate([opened.neuron_ids, first.neuron_ids])
    rows = np.concatenate([opened.rows, first.rows + opened.n_rows[0]])
    order, starts = segments(neuron_ids)
    largest, strongest = _largest(np.concatenate([opened.maxima, first.maxima])[order], starts)
    pairs = ((opened.sums, first.sums), (opened.n_active, first.n_active), (opened.n_above, first.n_above))
    sums, n_active, n_above = (_add(np.concatenate(pair)[order], starts, pair[0].dtype) for pair in pairs)
    joined = (neuron_ids[order[starts]], sums, largest, rows[order[strongest]], n_active, n_above)
    later = (others.neuron_ids, others.sums, others.maxima, others.rows, others.n_active, others.n_above)
    return ItemLatents(
        found.positions,
        np.concatenate([opened.n_rows + first.n_rows, others.n_rows]),
        np.concatenate([np.zeros(len(starts), np.int64), others.items + 1]),
        *(np.concatenate(pair) for pair in zip(joined, later, strict=True)),
    )


def _largest(values: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the largest value of each run, and where it is first reached."""
    if not len(starts):
        return values, starts
    largest = np.maximum.reduceat(values, starts)
    reaches = np.flatnonzero(values == np.repeat(largest, np.diff(starts, append=len(values))))
    return largest, reaches[np.searchsorted(reaches, starts)]


def _add(values: np.ndarray, starts: np.ndarray, dtype: type | np.dtype) -> np.ndarray:
    """Returns the sum of each run."""
    return np.add.reduceat(values, starts, dtype=dtype) if len(starts) else np.empty(0, dtype)


def _items(found: ItemLatents, start: int, stop: int) -> ItemLatents:
    """Returns the items `start:stop`."""
    entries = slice(*np.searchsorted(found.items, [start, stop]).tolist())
    of_entries = (found.neuron_ids, found.sums, found.maxima, found.rows, found.n_active, found.n_above)
    return ItemLatents(
        found.positions[start:stop],
        found.n_rows[start:stop],
        found.items[entries] - start,
        *(values[entries] for values in of_entries),
    )
