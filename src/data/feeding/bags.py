"""Slides as bags of patch vectors with one label: what MIL models are trained on."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from src.data.feeding.rows import DEFAULT_RAM_BYTES
from src.data.feeding.standardize import Standardizer
from src.stores.activations.store import ActivationStore
from src.stores.latents.source import LatentSource

BagReader = Callable[[str], Tensor]
"""Returns the bag [n_patches, d] float32 of a slide id."""


class BagBatch(NamedTuple):
    """Slides padded to the longest: bags [n_bags, n_patches, d], mask [n_bags, n_patches] (true: a patch), labels."""

    item_ids: list[str]
    bags: Tensor
    mask: Tensor
    labels: Tensor


def activation_bags(store: ActivationStore, standardizer: Standardizer | None = None) -> BagReader:
    """Returns a reader of bags of activations [n_patches, d_in], standardised when asked."""

    def read(item_id: str) -> Tensor:
        rows = store.rows(item_id)
        # A tensor must own its memory, the map is read-only.
        return torch.from_numpy(np.array(rows) if standardizer is None else standardizer(rows))

    return read


def latent_bags(source: LatentSource, neuron_ids: Sequence[int] | None = None) -> BagReader:
    """Returns a reader of dense bags of latents: all [n_rows, n_latents], or of some neurons, in the order given."""

    def read(item_id: str) -> Tensor:
        latents = source.rows(item_id)
        return latents.to_dense() if neuron_ids is None else latents.columns(neuron_ids)

    return read


class CachedBags:
    """Keeps the bags that a reader has read, as long as they fit.

    Args:
        read: the reader.
        ram_bytes: how much may be kept; bags read after that are read again each time.
    """

    def __init__(self, read: BagReader, ram_bytes: int = DEFAULT_RAM_BYTES) -> None:
        self._read = read
        self._bytes_left = ram_bytes
        self._bags: dict[str, Tensor] = {}

    def __call__(self, item_id: str) -> Tensor:
        """Returns the bag of a slide; not to be changed in place."""
        if item_id in self._bags:
            return self._bags[item_id]
        bag = self._read(item_id)
        if bag.nbytes <= self._bytes_left:
            self._bytes_left -= bag.nbytes
            self._bags[item_id] = bag
        return bag


def collate_bags(item_ids: Sequence[str], bags: Sequence[Tensor], labels: Sequence[int]) -> BagBatch:
    """Pads bags [n_patches, d] with zeros to the longest and stacks them; the mask is false on padding."""
    padded = torch.nn.utils.rnn.pad_sequence(list(bags), batch_first=True)
    mask = torch.arange(padded.shape[1]) < torch.tensor([len(bag) for bag in bags])[:, None]
    return BagBatch(list(item_ids), padded, mask, torch.tensor(labels))
