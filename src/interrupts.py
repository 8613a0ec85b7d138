"""Ctrl-C and SIGTERM end a run in order: with what it keeps, and with the exit code that shells expect."""

import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

_SECONDS_TO_DELIVER_AGAIN = 0.2
_HANDLERS = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}


class Interrupted(SystemExit):
    """A signal asked this process to end.

    A SystemExit, because Lightning lets that pass where it makes an exit code of its own of KeyboardInterrupt.

    Attributes:
        code: 128 + the signal's number, as shells have it: 130 for Ctrl-C, 143 for SIGTERM.
        number: the signal's.
        signal_name: `SIGINT` or `SIGTERM`.
    """

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number
        self.signal_name = signal.Signals(number).name


@contextmanager
def interruptible() -> Iterator[None]:
    """Turns SIGINT and SIGTERM into `Interrupted` while the block runs, where nobody else handles them (submitit does).

    Python runs handlers in its main thread alone; called from another one, this changes nothing. It drops what a
    handler raises while an object is deleted: the signal is sent once more then, a moment later.
    """
    mine = threading.current_thread() is threading.main_thread()
    taken = [number for number, default in _HANDLERS.items() if mine and signal.getsignal(number) == default]
    for number in taken:
        signal.signal(number, _interrupt)
    hook, timers = sys.unraisablehook, []

    def deliver_again(dropped: Any) -> None:
        if isinstance(dropped.exc_value, Interrupted):
            timers.append(threading.Timer(_SECONDS_TO_DELIVER_AGAIN, os.kill, (os.getpid(), dropped.exc_value.number)))
            timers[-1].daemon = True
            timers[-1].start()
        else:
            hook(dropped)

    if taken:
        sys.unraisablehook = deliver_again
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for timer in timers:
            timer.cancel()
        for number in taken:
            signal.signal(number, _HANDLERS[number])


def interrupted_as(stop: SystemExit, number: int) -> Interrupted:
    """Returns an interruption by a signal with the notes of what somebody else made of it."""
    interruption = Interrupted(number)
    for note in getattr(stop, "__notes__", ()):
        interruption.add_note(note)
    return interruption


@contextmanager
def keeping(what: Callable[[], str]) -> Iterator[None]:
    """Notes on an interruption of the block what is kept of it, so that the next start goes on from there.

    Args:
        what: says it, e.g. "3 of 18 slides"; an empty text when there is nothing yet.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as interruption:
        if kept := what():
            interruption.add_note(kept)
        raise


def status_of(error: BaseException) -> str:
    """Returns the status of a run that an exception ended: an interruption is no failure."""
    return "failed" if isinstance(error, Exception) else "interrupted"


def describe(interruption: Interrupted, arguments: Sequence[str]) -> str:
    """Returns the one line for a user: what was kept, and the command that goes on.

    Args:
        interruption: with the notes of `keeping`.
        arguments: the command line's, after `python -m src.run`.
    """
    kept = list(dict.fromkeys(getattr(interruption, "__notes__", [])))
    if not kept:
        command = shlex.join(["python", "-m", "src.run", *arguments])
        return f"Interrupted by {interruption.signal_name}; nothing was kept. Start again with: {command}"
    # Not from the beginning once more.
    going_on = [argument for argument in arguments if argument.replace(" ", "").lower() != "overwrite=true"]
    command = shlex.join(["python", "-m", "src.run", *going_on])
    return f"Interrupted by {interruption.signal_name}; kept: {', '.join(kept)}. Go on with: {command}"


def _interrupt(number: int, _: object) -> None:
    raise Interrupted(number)
