"""One stream of blocks for several trainings in one process: each block is read once and used by all."""

from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Generic, TypeVar

from src.data.feeding.epoch_order import Positions, Span

T = TypeVar("T")


class SharedBlocks(Generic[T]):
    """Hands the block that one training just used to the others that come to the same place.

    Trainings take turns (`src.lockstep.Lockstep`), the one furthest behind first, so blocks are asked for in order and
    each is read once; where one catches up after a restart, reading goes on from its place.

    Args:
        read: makes blocks from the order of an epoch and their places, as `EpochLoader` takes it.
        take_turn: called with (epoch, place) before a block is handed out; returns when it is this training's turn.
    """

    def __init__(
        self,
        read: Callable[[Positions, Sequence[Span]], Iterator[T]],
        take_turn: Callable[[tuple[int, int]], None],
    ) -> None:
        self.n_read = 0
        self._read = read
        self._take_turn = take_turn
        self._running: Iterator[T] | None = None
        self._coming: tuple[int, Span] | None = None
        self._latest: tuple[tuple[int, Span], T] | None = None

    def read(self, epoch: int, positions: Positions, blocks: Sequence[Span]) -> Generator[T, None, None]:
        """Yields the blocks at some places of an epoch, to one of the trainings."""
        for number, block in enumerate(blocks):
            self._take_turn((epoch, block[0]))
            yield self._block(epoch, positions, blocks, number)

    def close(self) -> None:
        """Ends the reading ahead and lets go of the block that is held."""
        close = getattr(self._running, "close", None)
        if close is not None:
            close()
        self._running = self._coming = self._latest = None

    def _block(self, epoch: int, positions: Positions, blocks: Sequence[Span], number: int) -> T:
        place = (epoch, blocks[number])
        if self._latest is not None and self._latest[0] == place:
            return self._latest[1]
        if self._coming != place or self._running is None:
            self.close()
            self._running = self._read(positions, blocks[number:])
        self._latest = None
        self._latest = (place, next(self._running))
        self.n_read += 1
        self._coming = (epoch, blocks[number + 1]) if number + 1 < len(blocks) else None
        return self._latest[1]
