"""Feeds SAE training: blocks of shuffled activation batches, each row exactly once an epoch."""

from collections.abc import Iterable, Sequence
from typing import Any

import lightning as L
import numpy as np
import torch

from src.data.activation_store import ActivationStore
from src.data.epoch_loader import EpochLoader, unfinished_batches
from src.data.rows import DEFAULT_RAM_BYTES, StoreRows


class ActivationDataModule(L.LightningDataModule):
    """Train and validation activations of one fold.

    Training yields blocks: lists of `block_size` float32 tensors [<= batch_size, d_in], so that one training step of
    Lightning makes many optimizer steps. Every epoch visits each train row once, in a permutation of all of them that
    is seeded by (seed, epoch); the last block may hold fewer batches and its last batch fewer rows. The position is
    part of Lightning's checkpoint, and a resumed run goes on at the next row that was not trained on.

    Validation yields single batches in the order of the slides.

    Args:
        store: packed activations.
        train_ids: slides to train on.
        val_ids: slides to validate on; may be empty.
        batch_size: rows of a batch.
        block_size: batches of a block.
        seed: of the permutations.
        ram_bytes: train rows (and, apart, validation rows) up to this many bytes are held in memory, more are read from
            the map on disk.

    Raises:
        ValueError: when a size is below 1, there is no train row, or a slide was not packed.
    """

    def __init__(
        self,
        store: ActivationStore,
        train_ids: Sequence[str],
        val_ids: Sequence[str],
        batch_size: int,
        block_size: int,
        seed: int,
        ram_bytes: int = DEFAULT_RAM_BYTES,
    ) -> None:
        super().__init__()
        if batch_size < 1 or block_size < 1:
            raise ValueError(f"Expected batch_size and block_size of at least 1, got {batch_size} and {block_size}.")
        self.batch_size = batch_size
        self.train_rows = StoreRows(store, train_ids, ram_bytes)
        self.val_rows = StoreRows(store, val_ids, ram_bytes)
        if not len(self.train_rows):
            raise ValueError(f"Expected train slides among those of {store.path}, got none.")
        group_size = batch_size * block_size
        self._train_loader = EpochLoader(len(self.train_rows), group_size, self._train_block, seed, self._n_unfinished)

    def train_dataloader(self) -> EpochLoader[list[torch.Tensor]]:
        """Returns the loader of blocks."""
        return self._train_loader

    def val_dataloader(self) -> Iterable[torch.Tensor]:
        """Returns the loader of validation batches.

        An empty list without validation slides; give the Trainer limit_val_batches=0 then, or it warns.
        """
        if not len(self.val_rows):
            return []
        return EpochLoader(len(self.val_rows), self.batch_size, self.val_rows.gather)

    def state_dict(self) -> dict[str, Any]:
        """Returns the position in training: epoch, and rows consumed in it."""
        return self._train_loader.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up a position in training."""
        self._train_loader.load_state_dict(state_dict)

    def _train_block(self, positions: np.ndarray) -> list[torch.Tensor]:
        return list(self.train_rows.gather(positions).split(self.batch_size))

    def _n_unfinished(self) -> int:
        return unfinished_batches(self.trainer)
