"""Vectors of items in batches, shuffled by epoch: what probes train on."""

from collections.abc import Generator, Sequence
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import torch
from torch import Tensor

from src.data.feeding.epoch_loader import EpochLoader
from src.data.feeding.epoch_order import EpochOrder, Positions, Span
from src.data.feeding.item_vectors import ItemVectors


class ProbeBatch(NamedTuple):
    """Vectors [batch, d] float32 and what they are, targets as `src.ops.probe_losses.probe_loss` takes them."""

    vectors: Tensor
    targets: Tensor


class ProbeDataModule(L.LightningDataModule):
    """Train and validation vectors; every epoch visits each train vector once in a permutation by (seed, epoch).

    Args:
        vectors: of all items.
        targets: of each item, by its position: [n_items] int64 or [n_items, n_classes] float, NaN where not known.
        train: the positions of the train items.
        val: those of the validation items; may be empty.
        seed: of the permutations.
        batch_size: vectors a batch.
    """

    def __init__(
        self,
        vectors: ItemVectors,
        targets: Tensor,
        train: range,
        val: range,
        seed: int,
        batch_size: int,
    ) -> None:
        super().__init__()
        self._vectors, self._targets, self._batch_size = vectors, targets, batch_size
        self._val = vectors.of(val)
        self._train_loader = self._loader(vectors.of(train), seed)

    def train_dataloader(self) -> EpochLoader[ProbeBatch]:
        """Returns the loader of shuffled train batches."""
        return self._train_loader

    def val_dataloader(self) -> Any:
        """Returns the loader of validation batches; an empty list without any."""
        return self._loader(self._val) if self._val.stop > self._val.start else []

    def _loader(self, part: slice, seed: int | None = None) -> EpochLoader[ProbeBatch]:
        def read(positions: Positions, blocks: Sequence[Span]) -> Generator[ProbeBatch, None, None]:
            for start, stop in blocks:
                chosen = part.start + np.asarray(positions[start:stop])
                values = torch.from_numpy(np.array(self._vectors.values[chosen]))
                yield ProbeBatch(values, self._targets[torch.from_numpy(self._vectors.items[chosen])])

        return EpochLoader(EpochOrder(part.stop - part.start, seed), self._batch_size, read)
