"""From patches to slides: each neuron's maximum over a slide, and how often it fires."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from src.ops.sparse_latents import SparseLatents
from src.progress import track


@dataclass(frozen=True)
class PooledSlides:
    """Neurons or channels over slides.

    Attributes:
        item_ids: the slides, in the order of the rows.
        maxima: [n_slides, n_neurons] float32, the largest value over a slide's patches; 0 where a neuron is silent.
        density: [n_neurons] float64, the share of all patches on which the value is above 0.
    """

    item_ids: tuple[str, ...]
    maxima: np.ndarray
    density: np.ndarray


def pool_slides(read: Callable[[str], SparseLatents | np.ndarray], item_ids: Sequence[str]) -> PooledSlides:
    """Max-pools slides one at a time, sparse ones without making them dense.

    The maximum over patches is the pool of the multiple-instance assumption: a slide is positive as soon as one patch
    is (O. Maron and T. Lozano-Perez, NeurIPS 1998), and it is what the published selection of single SAE neurons uses.

    Args:
        read: gives the values of a slide, [n_patches, n_neurons], sparse latents or a dense array.
        item_ids: the slides.

    Raises:
        ValueError: when no slide is given or one has no patch.
    """
    if not item_ids:
        raise ValueError("Expected slides to pool, got none: the part of the split is empty.")
    maxima, n_active, n_patches = [], np.zeros(1), 0
    for item_id in track(item_ids, "Pooling slides"):
        values = read(item_id)
        if values.shape[0] == 0:
            raise ValueError(f"Expected at least one patch of slide {item_id}, got none: take it out of the split.")
        if isinstance(values, SparseLatents):
            maxima.append(values.max_over_rows().numpy())
            active_ids = values.neuron_ids[values.values > 0].numpy()
            active = np.bincount(active_ids, minlength=values.shape[1])
        else:
            maxima.append(values.max(axis=0))
            active = (values > 0).sum(axis=0)
        n_active = n_active + active
        n_patches += values.shape[0]
    return PooledSlides(tuple(item_ids), np.stack(maxima).astype(np.float32), n_active / n_patches)
