"""An iterable over seeded epochs that knows its position, so that training resumes at the next unseen item."""

from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, Generic, TypeVar

import lightning as L

from src.data.feeding.epoch_order import EpochOrder, Positions, Span

T = TypeVar("T")


class EpochLoader(Generic[T]):
    """Yields blocks of batches of items; every item once an epoch, in an order that `order` and the epoch decide.

    Each `iter()` begins the next epoch, except the first and the one after `load_state_dict`, which go on where the
    state stands. `len()` is that of a whole epoch also then, because Lightning restores its own count of batches.

    Args:
        order: of the items.
        batch_size: items a batch.
        read: makes what is yielded from the order of an epoch and the places (first, last + 1) of its blocks in it,
            lazily or ahead; the position counts what was yielded.
        block_size: batches a block; the last block of an epoch may be shorter. Changes no batch.
        data: says which items they are; a position among others is refused.
        n_unfinished: tells how many of the blocks handed out, 0 or 1, the consumer has not finished; such a block is
            not counted in `state_dict` and comes again after a resume.

    Raises:
        ValueError: when a size is below 1.
    """

    def __init__(
        self,
        order: EpochOrder,
        batch_size: int,
        read: Callable[[Positions, Sequence[Span]], Generator[T, None, None]],
        *,
        block_size: int = 1,
        data: str = "",
        n_unfinished: Callable[[], int] = lambda: 0,
    ) -> None:
        if batch_size < 1 or block_size < 1:
            raise ValueError(f"Expected batch_size and block_size of at least 1, got {batch_size} and {block_size}.")
        self.order = order
        self.batch_size = batch_size
        self.block_size = block_size
        self.epoch = 0
        self.consumed = 0
        self._positions: tuple[EpochOrder, int, Positions] | None = None
        self._consumed_before = 0
        self._read = read
        self._data = data
        self._n_unfinished = n_unfinished
        self._at_position = True
        self._running: Generator[T, None, None] | None = None

    def __len__(self) -> int:
        return -(-self.order.n_items // self._items_per_block)

    def __iter__(self) -> Iterator[T]:
        self.close()
        if not self._at_position and self.consumed:
            self.epoch, self.consumed = self.epoch + 1, 0
        self._at_position = False
        n_items, step = self.order.n_items, self._items_per_block
        spans = [(start, min(start + step, n_items)) for start in range(self.consumed, n_items, step)]
        if not spans:
            return
        self._running = running = self._read(self.positions(self.epoch), spans)
        try:
            for start, stop in spans:
                block = next(running)
                # Counted before it is handed out: Lightning saves checkpoints before it asks for the next block.
                self._consumed_before, self.consumed = start, stop
                yield block
                del block
        finally:
            running.close()

    def close(self) -> None:
        """Ends the reading ahead of an iteration that was left early."""
        if self._running is not None:
            self._running.close()
            self._running = None

    def positions(self, epoch: int) -> Positions:
        """Returns the order of an epoch; that of the last one asked for is kept."""
        if self._positions is None or self._positions[:2] != (self.order, epoch):
            self._positions = self.order, epoch, self.order.epoch(epoch)
        return self._positions[2]

    @property
    def n_blocks_done(self) -> int:
        """The blocks of a whole epoch less those that are to come; where the position is no block's end, rounded."""
        return len(self) - -(-(self.order.n_items - self.consumed) // self._items_per_block)

    def state_dict(self) -> dict[str, Any]:
        """Returns the position: epoch and items consumed in it; and what the order depends on."""
        epoch, consumed = self.epoch, self.consumed
        if consumed and self._n_unfinished():
            consumed = self._consumed_before
        elif consumed == self.order.n_items:
            epoch, consumed = epoch + 1, 0
        return {"epoch": epoch, "consumed": consumed, **self._identity()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up a position.

        Raises:
            ValueError: when the state is of another order of items, so that its position means other items.
        """
        for key, value in self._identity().items():
            if state_dict.get(key) != value:
                raise ValueError(
                    f"Expected a checkpoint made with {key}={value}, got {state_dict.get(key)}: its position in the "
                    "epoch means other rows here. Resume with the data and settings it was made with, or start over "
                    "with overwrite=true."
                )
        self.close()
        self.epoch, self.consumed = state_dict["epoch"], state_dict["consumed"]
        self._consumed_before = self.consumed
        self._at_position = True

    @property
    def _items_per_block(self) -> int:
        return self.batch_size * self.block_size

    def _identity(self) -> dict[str, Any]:
        return {**self.order.state, "batch_size": self.batch_size, "data": self._data}


def unfinished_batches(trainer: "L.Trainer | None") -> int:
    """Returns how many train batches (0 or 1) Lightning has taken but not finished.

    One while a batch is being trained on, as when a checkpoint is saved because of an exception; Lightning repeats that
    batch after a resume.
    """
    if trainer is None:
        return 0
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    return progress.ready - progress.processed


def recount_batches(trainer: "L.Trainer | None", loader: EpochLoader[Any]) -> None:
    """Makes Lightning's count of batches that of a loader which resumes in the middle of an epoch.

    Lightning counts blocks. Where they had another size before the restart, its count would end the epoch early, or
    miss its end and with it the validation.
    """
    if trainer is None or not loader.consumed:
        return
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    if not progress.processed:
        return
    difference = loader.n_blocks_done - progress.processed
    for name in ("ready", "started", "processed", "completed"):
        setattr(progress, name, getattr(progress, name) + difference)
