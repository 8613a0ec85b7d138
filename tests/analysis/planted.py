"""Latents of items in pieces, to test sums over items with."""

import numpy as np
import torch

from src.ops.sparse_latents import SparseLatents
from tests.latents import make_dense


def make_items(n_items=9, n_latents=7, most_rows=6, seed=0):
    """Returns dense latents [n_rows, n_latents] of items of one to `most_rows` rows."""
    sizes = np.random.default_rng(seed).integers(1, most_rows + 1, n_items)
    return list(make_dense(int(sizes.sum()), n_latents, seed).split(sizes.tolist()))


def cut(items, n_rows, order=None):
    """Yields pieces of `n_rows` rows as a `LatentSource` does; items are read in `order` and keep their positions."""
    order = list(range(len(items)) if order is None else order)
    codes = np.repeat(order, [len(items[position]) for position in order])
    rows = torch.cat([items[position] for position in order])
    for start in range(0, len(rows), n_rows):
        yield codes[start : start + n_rows], SparseLatents.from_dense(rows[start : start + n_rows])
