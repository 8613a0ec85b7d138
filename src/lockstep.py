"""Runs several jobs side by side in one process, one at a time awake, each as if it were alone."""

import random
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch

T = TypeVar("T")

# Where a job stands in what all of them read: (epoch, rows). Jobs that have not begun to read come first.
Position = tuple[int, int]
_START: Position = (-1, 0)


class Lockstep:
    """Lets jobs take turns, so that each block of a shared stream is read once and used by all before the next one.

    A job runs in a thread of its own until it asks for its next turn. The turn goes to the job that is furthest behind,
    the first one of several. A job that starts behind the others, as after a kill, catches up alone. The random number
    generators of Python, numpy and torch change hands with the turn: every job draws the numbers it would draw alone.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._positions: dict[int, Position] = {}
        self._awake: int | None = None
        self._stopped = False
        self._random_states: dict[int, Any] = {}
        self._local = threading.local()

    def run(self, jobs: Sequence[Callable[[], T]]) -> list[T | Exception]:
        """Runs all jobs to their ends.

        An interrupt reaches the jobs at their next turns.

        Returns:
            What each job returned, or the exception that ended it; the other jobs go on.

        Raises:
            KeyboardInterrupt: when this thread or a job was interrupted, after all jobs have ended.
        """
        outcomes: list[Any] = [None] * len(jobs)
        before = _random_state()
        self._positions = dict.fromkeys(range(len(jobs)), _START)
        self._random_states = dict.fromkeys(range(len(jobs)), before)
        self._stopped, self._awake = False, None
        threads = [
            threading.Thread(target=self._live, args=(index, job, outcomes), name=f"job {index}")
            for index, job in enumerate(jobs)
        ]
        for thread in threads:
            thread.start()
        try:
            with self._condition:
                self._wake_next()
            for thread in threads:
                thread.join()
        except KeyboardInterrupt:
            with self._condition:
                self._stopped = True
            for thread in threads:
                thread.join()
            raise
        finally:
            _set_random_state(before)
        for outcome in outcomes:
            if isinstance(outcome, BaseException) and not isinstance(outcome, Exception):
                raise outcome
        return outcomes

    def take_turn(self, position: Position) -> None:
        """Lets the others work until this job, which now stands at `position`, is the one furthest behind.

        Outside a job it returns at once.

        Raises:
            KeyboardInterrupt: when the jobs were interrupted meanwhile.
        """
        index = getattr(self._local, "index", None)
        if index is None:
            return
        with self._condition:
            self._positions[index] = position
            self._random_states[index] = _random_state()
            self._wake_next()
            self._wait(index)

    def _live(self, index: int, job: Callable[[], Any], outcomes: list[Any]) -> None:
        self._local.index = index
        try:
            with self._condition:
                self._wait(index)
            outcomes[index] = job()
        except BaseException as error:  # handed to the caller of `run`
            outcomes[index] = error
        finally:
            with self._condition:
                del self._positions[index]
                self._wake_next()

    def _wake_next(self) -> None:
        self._awake = min(self._positions, key=lambda index: (self._positions[index], index), default=None)
        self._condition.notify_all()

    def _wait(self, index: int) -> None:
        self._condition.wait_for(lambda: self._awake == index)
        if self._stopped:
            raise KeyboardInterrupt("Interrupted while another run had the turn.")
        _set_random_state(self._random_states[index])


def _random_state() -> tuple[Any, ...]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda


def _set_random_state(state: tuple[Any, ...]) -> None:
    python, of_numpy, of_torch, cuda = state
    random.setstate(python)
    np.random.set_state(of_numpy)
    torch.set_rng_state(of_torch)
    if cuda is not None:
        torch.cuda.set_rng_state_all(cuda)
