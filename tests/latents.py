"""Stores of latents to test with."""

import numpy as np
import torch

from src.ops.sparse_latents import SparseLatents
from src.stores.latents.index import LatentItem
from src.stores.latents.writer import LatentWriter


def make_dense(n_rows, n_latents, seed=0):
    """About half of the values are zero, a tenth are equal; neuron 1 and row 1 are silent."""
    dense = torch.randn(n_rows, n_latents, generator=torch.Generator().manual_seed(seed)).relu()
    dense[dense > 1.2] = 1.5
    dense[:, 1] = 0
    if n_rows > 1:
        dense[1] = 0
    return dense


def write_latents(path, of_items, coords=None, size=None, digest="", by_neuron=True, **arguments):
    """Writes dense latents [n_rows, n_latents] by item, and returns the store."""
    n_latents = next(iter(of_items.values())).shape[1]
    items = [LatentItem(item_id, 0, len(rows), digest, size) for item_id, rows in of_items.items()]
    writer = LatentWriter(path, n_latents, items, **arguments)
    for item_id, rows in of_items.items():
        of_item = None
        if coords is not None:
            of_item = coords.get(item_id, np.full((len(rows), 2), -1))
        writer.append(SparseLatents.from_dense(rows), of_item)
    return writer.finish(by_neuron)
