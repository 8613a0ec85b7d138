"""From rows to items: each neuron's maximum over an item, and how often it fires."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from src.ops.sparse_latents import SparseLatents
from src.progress import track


@dataclass(frozen=True)
class PooledItems:
    """Neurons or channels over items.

    Attributes:
        item_ids: the items, in the order of the rows.
        maxima: [n_items, n_neurons] float32, the largest value over an item's rows; 0 where a neuron is silent.
        density: [n_neurons] float64, the share of all rows on which the value is above 0.
    """

    item_ids: tuple[str, ...]
    maxima: np.ndarray
    density: np.ndarray


def pool_items(pieces: Iterable[tuple[np.ndarray, SparseLatents | np.ndarray]], item_ids: Sequence[str]) -> PooledItems:
    """Max-pools items piece by piece, sparse ones without making them dense.

    The maximum over rows is the pool of the multiple-instance assumption: a slide is positive as soon as one patch
    is (O. Maron and T. Lozano-Perez, NeurIPS 1998), and it is what the published selection of single SAE neurons uses.

    Args:
        pieces: rows of the items as `LatentSource.read` gives them: the position in `item_ids` of each row's item
            [n_rows], and the values [n_rows, n_neurons], sparse latents or a dense array.
        item_ids: the items.

    Raises:
        ValueError: when no item is given or one has no row.
    """
    if not item_ids:
        raise ValueError("Expected items to pool, got none: the part of the split is empty.")
    maxima, n_active = torch.empty(0), torch.zeros(1, dtype=torch.int64)
    n_rows = np.zeros(len(item_ids), np.int64)
    for codes, values in track(pieces, "Pooling"):
        if not len(maxima):
            silent = 0.0 if isinstance(values, SparseLatents) else -torch.inf
            maxima = torch.full((len(item_ids), values.shape[1]), silent)
        n_rows += np.bincount(codes, minlength=len(item_ids))
        items = torch.from_numpy(codes)
        if isinstance(values, SparseLatents):
            places = items[values.row_ids] * values.n_latents + values.neuron_ids
            maxima.view(-1).scatter_reduce_(0, places, values.values, "amax")
            n_active = n_active + torch.bincount(values.neuron_ids[values.values > 0], minlength=values.n_latents)
        else:
            rows = torch.from_numpy(np.array(values, dtype=np.float32))
            maxima.scatter_reduce_(0, items[:, None].expand_as(rows), rows, "amax")
            n_active = n_active + (rows > 0).sum(0)
    if not n_rows.all():
        empty = item_ids[int(n_rows.argmin())]
        raise ValueError(f"Expected at least one row of item {empty}, got none: take it out of the split.")
    return PooledItems(tuple(item_ids), maxima.numpy(), n_active.numpy() / n_rows.sum())
