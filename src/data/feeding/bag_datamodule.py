"""Feeds MIL training: the bags of one fold, shuffled by epoch."""

from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import Any

import lightning as L

from src.data.feeding.bags import BagBatch, BagReader, CachedBags, collate_bags
from src.data.feeding.epoch_loader import EpochLoader
from src.data.feeding.epoch_order import EpochOrder, Positions, Span
from src.data.feeding.rows import DEFAULT_RAM_BYTES
from src.records import FoldSplit


class BagDataModule(L.LightningDataModule):
    """Train, validation and test bags of one fold.

    Every epoch visits each train slide once in a permutation seeded by (seed, epoch); the position is part of
    Lightning's checkpoint. Validation and test slides come in the order of the split.

    Attributes:
        read: gives the bag of a slide, and keeps it while there is room.

    Args:
        read: gives the bag of a slide: `src.data.feeding.bags.activation_bags` or `latent_bags`.
        split: the fold.
        labels: class index by slide id.
        seed: of the permutations.
        batch_size: bags of a batch; more than one are padded to the longest.
        ram_bytes: how much of the bags is kept in memory after the first reading.

    Raises:
        ValueError: when there is no train slide, or a slide has no label.
    """

    def __init__(
        self,
        read: BagReader,
        split: FoldSplit,
        labels: Mapping[str, int],
        seed: int,
        batch_size: int = 1,
        ram_bytes: int = DEFAULT_RAM_BYTES,
    ) -> None:
        super().__init__()
        if not split.train:
            raise ValueError(f"Expected train slides in fold {split.fold}, got none.")
        unlabelled = [one for one in split.train + split.val + split.test if one not in labels]
        if unlabelled:
            raise ValueError(f"Expected a label for every slide, got none for {unlabelled[:5]}: add them to the csv.")
        self.read = CachedBags(read, ram_bytes)
        self.batch_size = batch_size
        self._split, self._labels = split, labels
        self._train_loader = self._loader(split.train, seed)

    def train_dataloader(self) -> EpochLoader[BagBatch]:
        """Returns the loader of shuffled train bags."""
        return self._train_loader

    def val_dataloader(self) -> Iterable[BagBatch]:
        """Returns the loader of validation bags.

        An empty list without validation slides; give the Trainer limit_val_batches=0 then, or it warns.
        """
        return self._loader(self._split.val) if self._split.val else []

    def test_dataloader(self) -> Iterable[BagBatch]:
        """Returns the loader of test bags; an empty list without test slides."""
        return self._loader(self._split.test) if self._split.test else []

    def state_dict(self) -> dict[str, Any]:
        """Returns the position in training: epoch, and bags consumed in it."""
        return self._train_loader.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up a position in training."""
        self._train_loader.load_state_dict(state_dict)

    def _loader(self, item_ids: Sequence[str], seed: int | None = None) -> EpochLoader[BagBatch]:
        def read(positions: Positions, blocks: Sequence[Span]) -> Generator[BagBatch, None, None]:
            for start, stop in blocks:
                names = [item_ids[int(position)] for position in positions[start:stop]]
                yield collate_bags(names, [self.read(one) for one in names], [self._labels[one] for one in names])

        return EpochLoader(EpochOrder(len(item_ids), seed), self.batch_size, read)
