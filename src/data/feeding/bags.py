"""Slides as bags of patch vectors with one label, and the bags of a fold, shuffled by epoch: what MIL trains on."""

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import torch
from torch import Tensor

from src.data.feeding.epoch_loader import EpochLoader
from src.data.feeding.epoch_order import EpochOrder, Positions, Span
from src.data.feeding.rows import DEFAULT_RAM_BYTES
from src.data.feeding.standardize import Standardizer
from src.records import FoldSplit
from src.stores.activations.store import ActivationStore
from src.stores.latents.source import LatentSource

_SILENT = "Expected train bags with values other than 0, got none: a model could learn nothing."

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


def activation_scale(read: BagReader, item_ids: Iterable[str]) -> Tensor:
    """Returns the factor that brings the values of all given slides to root mean square 1: 0-d.

    For activations: one number for all features, so that their geometry stays as it is.

    Args:
        read: gives the bag of a slide.
        item_ids: the slides to measure: the train slides of a fold.

    Raises:
        ValueError: when every value is 0.
    """
    total, n_values = 0.0, 0
    for item_id in item_ids:
        bag = read(item_id)
        total += float(bag.square().sum(dtype=torch.float64))
        n_values += bag.numel()
    if total == 0:
        raise ValueError(_SILENT)
    return torch.tensor((n_values / total) ** 0.5)


def latent_scale(read: BagReader, item_ids: Iterable[str]) -> Tensor:
    """Returns what brings each neuron to root mean square 1 over the patches where it is active: [n_neurons].

    Zeros stay zeros. A neuron has a scale of its own, or a few strong ones decide it for all others, whose values then
    are too small to learn from; and patches where it is silent do not count, or the rarer a neuron, the larger what is
    left of it: latents of which 5 % are active came out at four where they are, and a model fitted its train slides
    before the end of the first epoch. A neuron that is silent on the given slides stays as it is.

    Args:
        read: gives the latents [n_patches, n_neurons] of a slide.
        item_ids: the slides to measure: the train slides of a fold.

    Raises:
        ValueError: when every value is 0.
    """
    squares, n_active = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.int64)
    for item_id in item_ids:
        bag = read(item_id)
        squares = squares + bag.double().square().sum(0)
        n_active = n_active + (bag != 0).sum(0)
    if not bool(n_active.any()):
        raise ValueError(_SILENT)
    return torch.where(n_active > 0, (n_active / squares).sqrt(), 1.0).float()


class BagDataModule(L.LightningDataModule):
    """Train, validation and test bags of one fold.

    Every epoch visits each train slide once in a permutation seeded by (seed, epoch); the position is part of
    Lightning's checkpoint. Validation and test slides come in the order of the split.

    Attributes:
        read: gives the bag of a slide, and keeps it while there is room.

    Args:
        read: gives the bag of a slide: `activation_bags` or `latent_bags`.
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
