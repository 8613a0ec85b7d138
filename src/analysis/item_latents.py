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
        if len(codes):
            found = _gather(opened, codes, latents, threshold)
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


def _gather(opened: ItemLatents | None, codes: np.ndarray, latents: SparseLatents, threshold: float) -> ItemLatents:
    """Gathers the rows of a piece, and what is known of its first item already where that was opened before."""
    starts = np.concatenate([[0], np.flatnonzero(codes[1:] != codes[:-1]) + 1])
    positions, n_rows = codes[starts], np.diff(starts, append=len(codes))
    items_of_rows = np.repeat(np.arange(len(starts)), n_rows)
    rows_of_items = np.arange(len(codes)) - starts[items_of_rows]
    if opened is not None and opened.positions[0] == codes[0]:
        rows_of_items[: n_rows[0]] += opened.n_rows[0]
        n_rows[0] += opened.n_rows[0]
    elif opened is not None:
        positions, n_rows = np.insert(positions, 0, opened.positions[0]), np.insert(n_rows, 0, opened.n_rows[0])
        items_of_rows += 1

    values = latents.values.numpy().astype(np.float32, copy=False)
    of_rows = np.repeat(np.arange(len(codes)), latents.row_offsets.diff().numpy())
    neuron_ids = latents.neuron_ids.numpy().astype(np.int64, copy=False)
    active = values > 0
    if not active.all():  # a listed entry may be zero
        values, of_rows, neuron_ids = values[active], of_rows[active], neuron_ids[active]
    one = np.ones(len(values), np.int64)
    columns = [
        items_of_rows[of_rows],
        neuron_ids,
        values.astype(np.float64),
        values,
        rows_of_items[of_rows],
        one,
        (values > threshold).astype(np.int64),
    ]
    if opened is not None:
        before = (opened.items, opened.neuron_ids, opened.sums, opened.maxima, opened.rows)
        before += (opened.n_active, opened.n_above)
        columns = [np.concatenate(pair) for pair in zip(before, columns, strict=True)]
    return ItemLatents(positions, n_rows, *_by_item_and_neuron(columns, latents.n_latents))


def _by_item_and_neuron(columns: list[np.ndarray], n_latents: int) -> list[np.ndarray]:
    """Makes one entry of those of one item and neuron."""
    items, neuron_ids, sums, maxima, rows, n_active, n_above = columns
    order, starts = segments(items * n_latents + neuron_ids)
    if not len(order):
        return columns
    first, ordered = order[starts], maxima[order]
    largest = np.maximum.reduceat(ordered, starts)
    # Rows ascend within a run: the first that reaches the maximum is the smallest.
    reaches = np.flatnonzero(ordered == np.repeat(largest, np.diff(starts, append=len(order))))
    strongest = reaches[np.searchsorted(reaches, starts)]
    added = [np.add.reduceat(values[order], starts) for values in (sums, n_active, n_above)]
    return [items[first], neuron_ids[first], added[0], largest, rows[order[strongest]], *added[1:]]


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
