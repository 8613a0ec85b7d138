"""The order of the items of an epoch, which the number of items, the seed and the epoch alone decide."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

Span = tuple[int, int]


class Positions(Protocol):
    """The order of an epoch: place -> item; a slice of it gives those items, whatever came before."""

    def __len__(self) -> int: ...

    def __getitem__(self, places: slice, /) -> Any: ...


@dataclass(frozen=True)
class EpochOrder:
    """How the items of every epoch are ordered: each once, in another order each epoch, the same for a seed.

    Attributes:
        n_items: how many there are.
        seed: of the permutations; None keeps the items in order.
        chunk: None draws one permutation of all items, which is held in memory. Else the items are cut into chunks of
            this many, the chunks are permuted, and the items of `window` chunks are permuted among themselves: reading
            is sequential within a chunk, and memory grows with the number of chunks only.
        window: chunks that are mixed; None with `chunk`.
    """

    n_items: int
    seed: int | None
    chunk: int | None = None
    window: int | None = None

    def epoch(self, epoch: int) -> Positions:
        """Returns the order of an epoch."""
        if self.chunk is not None and self.window is not None and self.seed is not None:
            return WindowedPermutation(self.n_items, self.seed, epoch, self.chunk, self.window)
        return range(self.n_items) if self.seed is None else epoch_order(self.n_items, self.seed, epoch)

    @property
    def state(self) -> dict[str, Any]:
        """What decides which item a place in an epoch means."""
        order = "permutation" if self.chunk is None else "windows"
        return {"n_items": self.n_items, "seed": self.seed, "order": order, "chunk": self.chunk, "window": self.window}


def epoch_order(n_items: int, seed: int, epoch: int) -> np.ndarray:
    """Returns the order of items in an epoch: [n_items] int64, a permutation seeded by (seed, epoch)."""
    return _generator(np.random.SeedSequence((seed, epoch))).permutation(n_items)


@dataclass(frozen=True)
class Window:
    """Items that are permuted among themselves.

    Attributes:
        start: its first place in the epoch.
        spans: (first, last + 1) of the items of its chunks, ascending.
        permutation: [n] int64; at place start + i stands the permutation[i]-th item of the spans.
    """

    start: int
    spans: list[Span]
    permutation: np.ndarray

    @property
    def stop(self) -> int:
        """The place after its last."""
        return self.start + len(self.permutation)

    @cached_property
    def order(self) -> np.ndarray:
        """Its items in the order of the epoch: [n] int64."""
        return np.concatenate([np.arange(start, stop) for start, stop in self.spans])[self.permutation]


class WindowedPermutation:
    """The block-shuffled order of one epoch; holds the permutation of the chunks, and makes the rest when asked.

    The window that was made last is kept, for batches are asked for one after the other.

    Args:
        n_items: the number of items.
        seed: with `epoch`, of all that is random.
        epoch: see above.
        chunk: consecutive items that stay in one window; the last chunk may be shorter.
        window: chunks a window; the last window may have fewer.
    """

    def __init__(self, n_items: int, seed: int, epoch: int, chunk: int, window: int) -> None:
        self._n_items, self._seed, self._epoch = n_items, seed, epoch
        self._chunk, self._window = chunk, window
        self._chunks = self._permutation(0, -(-n_items // chunk))
        self._missing = len(self._chunks) * chunk - n_items
        self._place_of_last = int(np.argmax(self._chunks))
        self._last_made: tuple[int, Window] | None = None

    def __len__(self) -> int:
        return self._n_items

    def __getitem__(self, places: slice) -> np.ndarray:
        start, stop, _ = places.indices(len(self))
        parts = [np.empty(0, dtype=np.int64)]
        for window in self.windows(start, stop):
            parts.append(window.order[max(start - window.start, 0) : max(stop - window.start, 0)])
        return np.concatenate(parts)

    def windows(self, start: int, stop: int) -> Iterator[Window]:
        """Yields the windows that hold the places from `start` to `stop`."""
        number = min(start // (self._window * self._chunk), self.n_windows - 1)
        # The short chunk lies in some earlier window: the place may be in the next one.
        while self._start_of(number + 1) <= start < stop:
            number += 1
        while self._start_of(number) < stop and start < stop:
            yield self._make(number)
            number += 1
            if number == self.n_windows:
                return

    @property
    def window_size(self) -> int:
        """The most items a window has."""
        return min(self._window * self._chunk, self._n_items)

    @property
    def n_windows(self) -> int:
        """The number of windows."""
        return -(-len(self._chunks) // self._window)

    def _start_of(self, number: int) -> int:
        n_chunks = min(number * self._window, len(self._chunks))
        return n_chunks * self._chunk - self._missing * (self._place_of_last < n_chunks)

    def _make(self, number: int) -> Window:
        kept = self._last_made  # read once: threads ask side by side, and all make the same
        if kept is not None and kept[0] == number:
            return kept[1]
        start, stop = self._start_of(number), self._start_of(number + 1)
        chunks = np.sort(self._chunks[number * self._window : (number + 1) * self._window])
        spans = [(int(c) * self._chunk, min((int(c) + 1) * self._chunk, self._n_items)) for c in chunks]
        window = Window(start, spans, self._permutation(1 + number, stop - start))
        self._last_made = number, window
        return window

    def _permutation(self, part: int, n: int) -> np.ndarray:
        return _generator(np.random.SeedSequence((self._seed, self._epoch), spawn_key=(part,))).permutation(n)


def block_batches(start: int, stop: int, batch_size: int, rank: int = 0, n_ranks: int = 1) -> list[Span]:
    """Returns which places of an epoch a rank takes of each batch of the block from `start` to `stop`.

    A batch is cut into one contiguous piece a rank, the first ones longer by one when it does not divide (numpy's
    array_split): the pieces of all ranks, joined in order, are the batch of a single process. A batch with fewer items
    than ranks leaves empty pieces.

    Returns:
        (first, last + 1) a batch.
    """
    pieces = []
    for first in range(start, stop, batch_size):
        each, more = divmod(min(first + batch_size, stop) - first, n_ranks)
        begin = first + rank * each + min(rank, more)
        pieces.append((begin, begin + each + (rank < more)))
    return pieces


def _generator(seeds: np.random.SeedSequence) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seeds))
