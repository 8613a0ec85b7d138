"""Slides as bags of patch vectors with one label, and the bags of a fold, shuffled by epoch: what MIL trains on."""

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import torch
from torch import Tensor

from src.data.feeding.epoch_loader import EpochLoader
from src.data.feeding.epoch_order import EpochOrder, Positions, Span
from src.data.feeding.residency import free_gpu
from src.data.feeding.rows import DEFAULT_RAM_BYTES
from src.data.feeding.standardize import Standardizer
from src.ops.sparse_latents import SparseLatents
from src.split_files import FoldSplit
from src.stores.activations.store import ActivationStore
from src.stores.latents.source import LatentSource

_SILENT = "Expected train bags with values other than 0, got none: a model could learn nothing."

BagReader = Callable[[str], Tensor | SparseLatents]
"""Returns the bag [n_patches, d] float32 of a slide id."""
# Latents of a smaller share of non-zeros are multiplied sparse; where more, the dense product is faster.
_SPARSE_BELOW = 0.03


class BagBatch(NamedTuple):
    """Slides padded to the longest: bags [n_bags, n_patches, d], mask [n_bags, n_patches] (true: a patch), labels.

    `lengths` are the numbers of patches. Sparse bags are not padded: [n_rows, d], one slide's patches after the
    other's.
    """

    item_ids: list[str]
    bags: Tensor | SparseLatents
    mask: Tensor
    labels: Tensor
    lengths: list[int]


def activation_bags(store: ActivationStore, standardizer: Standardizer | None = None) -> Callable[[str], Tensor]:
    """Returns a reader of bags of activations [n_patches, d_in], standardised when asked."""

    def read(item_id: str) -> Tensor:
        rows = store.rows(item_id)
        # A tensor must own its memory, the map is read-only.
        return torch.from_numpy(np.array(rows) if standardizer is None else standardizer(rows))

    return read


def sparse_latent_bags(source: LatentSource) -> BagReader:
    """Returns a reader of bags of all latents as they are stored [n_rows, n_latents]."""
    return source.rows


def latent_bags(source: LatentSource, neuron_ids: Sequence[int] | None = None) -> Callable[[str], Tensor]:
    """Returns a reader of dense bags of latents: all [n_rows, n_latents], or of some neurons, in the order given."""

    def read(item_id: str) -> Tensor:
        latents = source.rows(item_id)
        return latents.to_dense() if neuron_ids is None else latents.columns(neuron_ids)

    return read


class CachedBags:
    """Keeps the bags that a reader has read, on the GPU and then in memory, as long as they fit.

    Args:
        read: the reader.
        ram_bytes: how much may be kept in memory; bags read after that are read again each time.
    """

    def __init__(self, read: BagReader, ram_bytes: int = DEFAULT_RAM_BYTES) -> None:
        self._read = read
        self._ram_left, self._device_left = ram_bytes, 0
        self._device: torch.device | None = None
        self._bags: dict[str, Tensor | SparseLatents] = {}

    def keep_on(self, device: torch.device, n_bytes: int) -> None:
        """Keeps bags that are read from now on on a device, as long as they take at most `n_bytes`."""
        self._device, self._device_left = device, n_bytes

    def __call__(self, item_id: str) -> Tensor | SparseLatents:
        """Returns the bag of a slide; not to be changed in place."""
        if item_id in self._bags:
            return self._bags[item_id]
        bag = self._read(item_id)
        n_bytes = _n_bytes(bag)
        if self._device is not None and n_bytes <= self._device_left:
            self._device_left -= n_bytes
            self._bags[item_id] = bag = bag.to(self._device)
        elif n_bytes <= self._ram_left:
            self._ram_left -= n_bytes
            self._bags[item_id] = bag
        return bag


def collate_bags(item_ids: Sequence[str], bags: Sequence[Tensor | SparseLatents], labels: Sequence[int]) -> BagBatch:
    """Pads bags [n_patches, d] with zeros to the longest and stacks them; the mask is false on padding.

    Sparse bags stay sparse when nearly all of their values are 0.
    """
    lengths = [bag.shape[0] for bag in bags]
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    sparse = [bag for bag in bags if isinstance(bag, SparseLatents)]
    joined: Tensor | SparseLatents
    if sparse and sum(bag.n_entries for bag in sparse) < _SPARSE_BELOW * sum(lengths) * sparse[0].n_latents:
        devices = {bag.values.device for bag in sparse}
        joined = SparseLatents.cat([bag.to(max(devices, key=str)) for bag in sparse] if len(devices) > 1 else sparse)
    else:
        dense = [_dense(bag) for bag in bags]
        device = max((bag.device for bag in dense), key=str)  # of the GPU and the CPU, the GPU
        dense = [bag.to(device) for bag in dense]
        joined = dense[0][None] if len(dense) == 1 else torch.nn.utils.rnn.pad_sequence(dense, batch_first=True)
    return BagBatch(list(item_ids), joined, mask, torch.tensor(labels), lengths)


def _dense(bag: Tensor | SparseLatents) -> Tensor:
    return bag if isinstance(bag, Tensor) else bag.to_dense()


def _n_bytes(bag: Tensor | SparseLatents) -> int:
    tensors = [bag] if isinstance(bag, Tensor) else [bag.row_offsets, bag.neuron_ids, bag.values]
    return sum(tensor.nbytes for tensor in tensors)


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
        bag = _dense(read(item_id))
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
        if isinstance(bag, SparseLatents):
            values, ids = bag.values.double(), bag.neuron_ids.long()
            squares = squares + values.new_zeros(bag.n_latents).index_add(0, ids, values.square())
            n_active = n_active + torch.bincount(ids[values != 0], minlength=bag.n_latents)
        else:
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

    def keep_on(self, device: torch.device) -> None:
        """Keeps the bags on the device that trains, when it is a GPU, as long as they take at most half of its room."""
        if (free := free_gpu(device)) is not None:
            self.read.keep_on(device, free // 2)

    def median_values(self) -> float:
        """Returns how many values the median train bag has; reads all of them."""
        return float(np.median([np.prod(self.read(item_id).shape) for item_id in self._split.train]))

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
