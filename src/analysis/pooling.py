"""From rows to items: one value a neuron and item, and how often each neuron fires."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from src.ops.sparse_latents import SparseLatents
from src.progress import track

POOLS = ("max", "mean", "top_mean", "active_fraction")
Piece = tuple[np.ndarray, SparseLatents | np.ndarray]


@dataclass(frozen=True)
class PooledItems:
    """Neurons or channels over items.

    Attributes:
        item_ids: the items, in the order of the rows.
        values: [n_items, n_neurons] float32, each neuron pooled over an item's rows.
        density: [n_neurons] float64, the share of all rows on which the value is above 0.
    """

    item_ids: tuple[str, ...]
    values: np.ndarray
    density: np.ndarray


def pool_items(
    pieces: Iterable[Piece], item_ids: Sequence[str], pool: str = "max", top_share: float = 0.01
) -> PooledItems:
    """Pools items piece by piece, sparse ones without making them dense.

    The maximum over rows is the pool of the multiple-instance assumption: a slide is positive as soon as one patch
    is (O. Maron and T. Lozano-Perez, NeurIPS 1998), and it is what the published selection of single SAE neurons uses.

    Args:
        pieces: rows of the items as `LatentSource.read` gives them: the position in `item_ids` of each row's item
            [n_rows], and the values [n_rows, n_neurons], sparse latents or a dense array.
        item_ids: the items.
        pool: `max`; `mean` over all rows; `top_mean`, the mean of the largest `top_share` of an item's rows, at least
            one, which a single stray row sways less; `active_fraction`, the share of rows above 0.
        top_share: see `pool`.

    Raises:
        ValueError: when no item is given, one has no row, or the pool is unknown.
    """
    if not item_ids:
        raise ValueError("Expected items to pool, got none: the part of the split is empty.")
    if pool not in POOLS:
        raise ValueError(f"Expected selection.pool to be one of {POOLS}, got {pool!r}.")
    pooled, n_active = np.empty((0, 0), np.float32), 0
    n_rows = np.zeros(len(item_ids), np.int64)
    if pool == "top_mean":
        pieces = _whole_items(pieces)
    for codes, values in track(pieces, "Pooling"):
        if not len(pooled):
            silent = -np.inf if pool == "max" and not isinstance(values, SparseLatents) else 0.0
            pooled = np.full((len(item_ids), values.shape[1]), silent, np.float32)
        n_rows += np.bincount(codes, minlength=len(item_ids))
        n_active = n_active + _count_active(values)
        if pool == "top_mean":
            n_top = max(1, math.ceil(top_share * len(codes)))
            pooled[codes[0]] = _largest_sums(values, n_top) / n_top
        else:
            _add_rows(pooled, codes, values, pool)
    if not n_rows.all():
        empty = item_ids[int(n_rows.argmin())]
        raise ValueError(f"Expected at least one row of item {empty}, got none: take it out of the split.")
    if pool in ("mean", "active_fraction"):
        pooled /= n_rows[:, None]
    return PooledItems(tuple(item_ids), pooled, n_active / n_rows.sum())


def _add_rows(pooled: np.ndarray, codes: np.ndarray, rows: SparseLatents | np.ndarray, pool: str) -> None:
    """Takes rows into maxima, sums or counts [n_items, n_neurons], in place."""
    # np.maximum.at and np.add.at take about 1.5 ns an entry, and need no sorting.
    take = np.maximum if pool == "max" else np.add
    if isinstance(rows, SparseLatents):
        values, neuron_ids, offsets = (part.numpy() for part in (rows.values, rows.neuron_ids, rows.row_offsets))
        places = np.repeat(codes * rows.n_latents, np.diff(offsets)) + neuron_ids
        take.at(pooled.reshape(-1), places, (values > 0).astype(np.float32) if pool == "active_fraction" else values)
    else:
        values = np.asarray(rows, np.float32)
        take.at(pooled, codes, (values > 0).astype(np.float32) if pool == "active_fraction" else values)


def _count_active(rows: SparseLatents | np.ndarray) -> np.ndarray:
    if isinstance(rows, SparseLatents):
        return np.bincount(rows.neuron_ids.numpy()[rows.values.numpy() > 0], minlength=rows.n_latents)
    return (np.asarray(rows) > 0).sum(axis=0)


def _largest_sums(rows: SparseLatents | np.ndarray, n_top: int) -> np.ndarray:
    """Returns the sum of each neuron's `n_top` largest values [n_neurons]."""
    if not isinstance(rows, SparseLatents):
        values = np.asarray(rows, np.float32)
        return np.partition(values, len(values) - n_top, axis=0)[-n_top:].sum(axis=0)
    values, neuron_ids = rows.values.numpy(), rows.neuron_ids.numpy()
    order = np.lexsort((-values, neuron_ids))
    ordered = neuron_ids[order]
    is_top = np.arange(len(order)) - np.searchsorted(ordered, ordered) < n_top
    return np.bincount(ordered[is_top], values[order[is_top]], rows.n_latents)


def _whole_items(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """Yields the rows of each item in one piece; those of an item come one after the other."""
    opened: list[Piece] = []
    for codes, values in pieces:
        starts = [0, *(np.flatnonzero(np.diff(codes)) + 1).tolist(), len(codes)]
        for start, stop in pairwise(starts):
            if opened and start < stop and opened[0][0][0] != codes[start]:
                yield _join(opened)
                opened = []
            part = values.rows(start, stop) if isinstance(values, SparseLatents) else values[start:stop]
            if start < stop:
                opened.append((codes[start:stop], part))
    if opened:
        yield _join(opened)


def _join(pieces: list[Piece]) -> Piece:
    codes = np.concatenate([codes for codes, _ in pieces])
    sparse = [values for _, values in pieces if isinstance(values, SparseLatents)]
    return codes, SparseLatents.cat(sparse) if sparse else np.concatenate([np.asarray(values) for _, values in pieces])
