"""Feeds SAE training: blocks of shuffled activation batches, each row exactly once an epoch."""

import logging
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from functools import cached_property
from itertools import chain
from typing import Any

import lightning as L
import numpy as np
import torch

from src.data.feeding.epoch_loader import EpochLoader
from src.data.feeding.epoch_order import EpochOrder, Positions, Span, block_batches
from src.data.feeding.feeds import WINDOW_BYTES, DeviceFeed, RamFeed, WindowFeed, read_in_order, windowed_order
from src.data.feeding.residency import choose_residency, free_gpu, free_ram
from src.data.feeding.rows import ImageRows, RowSource, StoreRows
from src.data.feeding.slide_entropy import slide_entropy
from src.data.feeding.training_length import TrainingLength

_LOGGER = logging.getLogger(__name__)
_N_ENTROPY_BATCHES = 16
# Of a block, unless a single batch is larger: one is trained on, one is made and BLOCKS_AHEAD wait.
_MOST_BLOCK_BYTES = 128 << 20

Block = list[torch.Tensor]


class ActivationDataModule(L.LightningDataModule):
    """Train and validation activations of one fold.

    Training yields blocks: lists of `block_size` float32 tensors [<= batch_size, d_in], so that one training step of
    Lightning makes many optimizer steps. Every epoch visits each train row once, in an order that the rows and (seed,
    epoch) decide (`windowed_order`), wherever the rows lie;
    the last block may hold fewer batches and its last batch fewer rows. The position is part of Lightning's checkpoint,
    and a resumed run goes on at the next row that was not trained on, also with another residency, another number of
    workers or processes or another block size.

    Of several processes (Lightning's world size), each gets its piece of every batch (`block_batches`); `batch_size`
    is that of all together.

    Validation yields single batches of rows in the order of the slides, divided among processes in the same way.

    Args:
        train_rows: to train on: those of slides in a packed store (`src.data.feeding.rows.StoreRows`), or rows that are
            computed when they are read (`src.data.feeding.backbone_rows.BackboneRows`).
        val_rows: to validate on; may be none.
        batch_size: rows of a batch, or images with batch_unit `images`.
        block_size: batches of a block; fewer where they would take more than 128 MiB.
        seed: of the permutations.
        residency: where train rows lie, of `RESIDENCIES`: `gpu` and `ram` hold them, `mmap` and `stream`
            read them window by window, from the map or from whatever the source does. `auto` chooses by size
            and free memory. Rows that one window holds are always kept. All visit rows in one order.
        n_workers: threads that read ahead, by two blocks; 0 reads when a block is asked for.
        batch_unit: `images` yields image blocks [<= batch_size, n_tokens, d_in], items of n_tokens consecutive rows.
        n_tokens: rows an image.
        epochs: of the whole training.
        total_rows: rows of the whole training, in place of `epochs`.
        n_checkpoints: of the places at equal distances where blocks end, so that the state there can be saved.
        window_bytes: rows of more than this are mixed by windows of so much; `mmap` and `stream` hold two of them.

    Raises:
        ValueError: when a size is below 1, there is no train row, a residency or unit is
            unknown, the rows of a slide are no multiple of n_tokens, or there are fewer items than processes.
    """

    def __init__(
        self,
        train_rows: RowSource,
        val_rows: RowSource,
        batch_size: int,
        block_size: int,
        seed: int,
        *,
        residency: str = "auto",
        n_workers: int = 0,
        batch_unit: str = "rows",
        n_tokens: int | None = None,
        epochs: int = 1,
        total_rows: int | None = None,
        n_checkpoints: int = 0,
        window_bytes: int = WINDOW_BYTES,
    ) -> None:
        super().__init__()
        if batch_size < 1 or block_size < 1:
            raise ValueError(f"Expected batch_size and block_size of at least 1, got {batch_size} and {block_size}.")
        if n_workers < 0:
            raise ValueError(f"Expected train.n_workers of at least 0, got {n_workers}.")
        if (batch_unit == "images") != (n_tokens is not None):
            raise ValueError(
                f"Expected train.batch_unit rows, or images with train.n_tokens, got {batch_unit} and {n_tokens}."
            )
        self.batch_size, self.seed = batch_size, seed
        self.residency, self.n_workers, self.n_tokens = residency, n_workers, n_tokens
        self.window_bytes = window_bytes
        self.train_rows, self.val_rows = train_rows, val_rows
        if not self.train_rows.n_rows:
            raise ValueError("Expected train slides with rows, got none.")
        self._items = self.train_rows if n_tokens is None else ImageRows(self.train_rows, n_tokens)
        batch_bytes = batch_size * self._items.d_in * 4
        self.block_size = min(block_size, max(1, _MOST_BLOCK_BYTES // batch_bytes))
        self._n_total = None if total_rows is None else -(-total_rows // (n_tokens or 1))
        self.length = TrainingLength(self.n_items, batch_size, self._n_total or epochs * self.n_items)
        self.checkpoint_steps = self.length.evenly(n_checkpoints) if n_checkpoints else []
        self.n_unfinished: Callable[[], int] = int  # 0, until a trainer that counts is known
        choose_residency(residency, 0, 0, 0)  # refuses a name that is none

    @property
    def n_items(self) -> int:
        """What `batch_size` counts: train rows, or images."""
        return self._items.n_rows

    def setup(self, stage: str) -> None:
        """Decides where train rows lie, in all processes alike."""
        if stage == "fit":
            _ = self.train_loader

    def teardown(self, stage: str) -> None:
        """Ends reading ahead."""
        if stage == "fit":
            self.train_loader.close()

    def train_dataloader(self) -> EpochLoader[Block]:
        """Returns the loader of blocks."""
        return self.train_loader

    def val_dataloader(self) -> Iterable[torch.Tensor]:
        """Returns the loader of validation batches.

        An empty list without validation slides; give the Trainer limit_val_batches=0 then, or it warns.
        """
        if not self.val_rows.n_rows:
            return []

        def read(_: Positions, blocks: Sequence[Span]) -> Generator[torch.Tensor, None, None]:
            return read_in_order(self.val_rows, chain.from_iterable(self._of_this_process(blocks, batch_rows)))

        batch_rows = self.batch_size * (self.n_tokens or 1)
        return EpochLoader(EpochOrder(self.val_rows.n_rows, seed=None), batch_rows, read)

    def slide_entropy(self, epoch: int) -> float:
        """Returns how well some batches of an epoch mix the slides; see `src.data.feeding.slide_entropy`."""
        order = self.train_loader.positions(epoch)
        n_whole = max(1, self.n_items // self.batch_size)
        numbers = np.unique(np.linspace(0, n_whole - 1, _N_ENTROPY_BATCHES).astype(int))
        batches = [np.asarray(order[i * self.batch_size : (i + 1) * self.batch_size]) for i in numbers.tolist()]
        return slide_entropy(batches, self._items.slide_starts, self.n_items)

    def state_dict(self) -> dict[str, Any]:
        """Returns the position in training: epoch, and items consumed in it by all processes."""
        return self.train_loader.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up a position in training, and the order it is a position in, where rows can be fed in it.

        That is another order than this run's where an earlier version, or other window_bytes, began the run.
        """
        loader = self.train_loader
        if state_dict.get("order") == "windows" or not isinstance(self._feed, WindowFeed):
            loader.order = replace(loader.order, chunk=state_dict.get("chunk"), window=state_dict.get("window"))
        loader.load_state_dict(state_dict)

    @cached_property
    def train_loader(self) -> EpochLoader[Block]:
        """The loader of blocks, which knows the position in training."""
        if self.n_items < self._rank_of[1]:
            raise ValueError(
                f"Expected at least as many train {'rows' if self.n_tokens is None else 'images'} as processes, got "
                f"{self.n_items} and {self._rank_of[1]}: use fewer processes (trainer.devices)."
            )
        _ = self._feed  # a wrong residency is told before the first batch, and by all processes together
        return EpochLoader(
            self._order,
            self.batch_size,
            self._read_blocks,
            block_size=self.block_size,
            data=self._items.identity,
            n_total=self._n_total,
            stops={self.length.place(step) for step in self.checkpoint_steps},
            n_unfinished=lambda: self.n_unfinished(),
        )

    @cached_property
    def _order(self) -> EpochOrder:
        return windowed_order(self._items, self.seed, self.window_bytes)

    @cached_property
    def _feed(self) -> RamFeed | DeviceFeed | WindowFeed:
        """Where rows come from; the first process decides for all, which may not share a machine but share an order."""
        items, n_bytes = self._items, self._items.n_rows * self._items.d_in * self._items.dtype.itemsize
        device = torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device
        is_computed = not isinstance(self.train_rows, StoreRows)
        ram = free_ram(self._rank_of[1]) if self.residency == "auto" else 0
        chosen = choose_residency(self.residency, n_bytes, ram, free_gpu(device), is_computed)
        if self.trainer is not None:
            chosen = self.trainer.strategy.broadcast(chosen)
        name, reason = chosen
        _LOGGER.info("Residency of %.2f GiB of train activations: %s, %s.", n_bytes / 2**30, name, reason)
        if name == "gpu":
            return DeviceFeed(items, device)
        # Rows that one window holds would lie in memory all the same.
        fits = name == "ram" or self._order.window is None
        return RamFeed(items, self.n_workers) if fits else WindowFeed(items, self.n_workers)

    def _read_blocks(self, positions: Positions, blocks: Sequence[Span]) -> Generator[Block, None, None]:
        """Yields the blocks at some places of an epoch, this process's piece of them."""
        with closing(self._feed.read(positions, self._of_this_process(blocks, self.batch_size))) as read:
            for block in read:
                yield block if self.n_tokens is None else [batch.unflatten(1, (self.n_tokens, -1)) for batch in block]
                del block

    def _of_this_process(self, blocks: Sequence[Span], batch_size: int) -> list[list[Span]]:
        return [block_batches(start, stop, batch_size, *self._rank_of) for start, stop in blocks]

    @property
    def _rank_of(self) -> tuple[int, int]:
        """(rank, number of processes)."""
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)
