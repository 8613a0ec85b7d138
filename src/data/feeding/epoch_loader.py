"""An iterable over seeded epochs that knows its position, so that training resumes at the next unseen item."""

from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from typing import Any, Generic, TypeVar

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
        n_total: items of the whole training, for which the last epoch is cut short; None sets no end.
        stops: (epoch, place) at which a block ends, so that the state there can be saved.
        n_unfinished: tells how many of the blocks handed out, 0 or 1, the consumer has not finished; such a block is
            not counted in `state_dict` and comes again after a resume.
    """

    def __init__(
        self,
        order: EpochOrder,
        batch_size: int,
        read: Callable[[Positions, Sequence[Span]], Generator[T, None, None]],
        *,
        block_size: int = 1,
        data: str = "",
        n_total: int | None = None,
        stops: Collection[tuple[int, int]] = (),
        n_unfinished: Callable[[], int] = lambda: 0,
    ) -> None:
        self.order = order
        self.batch_size = batch_size
        self.block_size = block_size
        self.epoch = 0
        self.consumed = 0
        self._positions: tuple[EpochOrder, int, Positions] | None = None
        self._consumed_before = 0
        self._read = read
        self._data = data
        self._n_total, self._stops = n_total, stops
        self._n_unfinished = n_unfinished
        self._at_position = True
        self._running: Generator[T, None, None] | None = None

    def __len__(self) -> int:
        """The most blocks that an epoch has; one with fewer ends with empty ones, for Lightning counts on a length."""
        return max(len(self._spans(epoch, 0)) for epoch in {0, *(epoch for epoch, _ in self._stops)})

    def __iter__(self) -> Iterator[T]:
        self.close()
        if not self._at_position and self.consumed:
            self.epoch, self.consumed = self.epoch + 1, 0
        self._at_position = False
        spans, n_empty = self._spans(self.epoch, self.consumed), 0
        if not self.consumed:
            n_empty = len(self) - len(spans)
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
        self._consumed_before = self.consumed
        for _ in range(n_empty):
            yield []  # pyright: ignore[reportReturnType]

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
        """The blocks of a whole epoch less those that are to come."""
        return len(self) - len(self._spans(self.epoch, self.consumed))

    def state_dict(self) -> dict[str, Any]:
        """Returns the position: epoch and items consumed in it; and what the order depends on."""
        epoch, consumed = self.epoch, self.consumed
        if consumed and self._n_unfinished():
            consumed = self._consumed_before
        elif consumed == self._n_items_of(epoch):
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

    def _spans(self, epoch: int, start: int) -> list[Span]:
        """Returns the places (first, last + 1) of an epoch's blocks from a place on."""
        n_items, step, spans = self._n_items_of(epoch), self.batch_size * self.block_size, []
        inside = sorted(place for number, place in self._stops if number == epoch and start < place < n_items)
        for stop in (*inside, n_items):
            spans += [(first, min(first + step, stop)) for first in range(start, stop, step)]
            start = stop
        return spans

    def _n_items_of(self, epoch: int) -> int:
        left = self.order.n_items if self._n_total is None else self._n_total - epoch * self.order.n_items
        return min(max(left, 0), self.order.n_items)

    def _identity(self) -> dict[str, Any]:
        return {**self.order.state, "batch_size": self.batch_size, "data": self._data}
