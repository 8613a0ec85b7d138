"""An iterable over seeded epochs that knows its position, so that training resumes at the next unseen item."""

from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

import lightning as L
import numpy as np

T = TypeVar("T")


class EpochLoader(Generic[T]):
    """Yields groups of items; every item once an epoch, in an order that (seed, epoch) alone decides.

    Each `iter()` begins the next epoch, except the first and the one after `load_state_dict`, which go on where the
    state stands. `len()` is that of a whole epoch also then, because Lightning restores its own count of batches.

    Args:
        n_items: the number of items.
        group_size: items a group; the last group of an epoch may be shorter.
        fetch: makes what is yielded from the positions [<= group_size] of a group's items.
        seed: of the permutations; None keeps the items in order.
        n_unfinished: tells how many of the groups handed out, 0 or 1, the consumer has not finished; such a group is
            not counted in `state_dict` and comes again after a resume.
    """

    def __init__(
        self,
        n_items: int,
        group_size: int,
        fetch: Callable[[np.ndarray], T],
        seed: int | None = None,
        n_unfinished: Callable[[], int] = lambda: 0,
    ) -> None:
        if group_size < 1:
            raise ValueError(f"Expected a group size of at least 1, got {group_size}.")
        self.n_items = n_items
        self.group_size = group_size
        self.seed = seed
        self.epoch = 0
        self.consumed = 0
        self._fetch = fetch
        self._n_unfinished = n_unfinished
        self._at_position = True

    def __len__(self) -> int:
        return -(-self.n_items // self.group_size)

    def __iter__(self) -> Iterator[T]:
        if not self._at_position and self.consumed:
            self.epoch, self.consumed = self.epoch + 1, 0
        self._at_position = False
        order = epoch_order(self.n_items, self.seed, self.epoch)
        while self.consumed < self.n_items:
            positions = order[self.consumed : self.consumed + self.group_size]
            group = self._fetch(positions)
            # Counted before it is handed out: Lightning saves checkpoints before it asks for the next group.
            self.consumed += len(positions)
            yield group

    def state_dict(self) -> dict[str, Any]:
        """Returns the position: epoch and items consumed in it; and what the order depends on."""
        epoch, consumed = self.epoch, self.consumed
        if consumed and self._n_unfinished():
            consumed = (consumed - 1) // self.group_size * self.group_size
        elif consumed == self.n_items:
            epoch, consumed = epoch + 1, 0
        return {"epoch": epoch, "consumed": consumed, **self._identity()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up a position.

        Raises:
            ValueError: when the state is of another order of items, so that its position means other items.
        """
        for key, value in self._identity().items():
            if state_dict[key] != value:
                raise ValueError(
                    f"Expected a checkpoint made with {key}={value}, got {state_dict[key]}: its position in the epoch "
                    "means other rows here. Resume with the data and settings it was made with, or start over with "
                    "overwrite=true."
                )
        self.epoch, self.consumed = state_dict["epoch"], state_dict["consumed"]
        self._at_position = True

    def _identity(self) -> dict[str, Any]:
        return {"n_items": self.n_items, "group_size": self.group_size, "seed": self.seed}


def epoch_order(n_items: int, seed: int | None, epoch: int) -> np.ndarray:
    """Returns the order of items in an epoch: [n_items] int64, a permutation seeded by (seed, epoch)."""
    if seed is None:
        return np.arange(n_items)
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, epoch)))).permutation(n_items)


def unfinished_batches(trainer: "L.Trainer | None") -> int:
    """Returns how many train batches (0 or 1) Lightning has taken but not finished.

    One while a batch is being trained on, as when a checkpoint is saved because of an exception; Lightning repeats that
    batch after a resume.
    """
    if trainer is None:
        return 0
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    return progress.ready - progress.processed
