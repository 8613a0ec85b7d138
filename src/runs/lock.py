"""One process writes a run directory at a time, and a lock whose holder died is recognised."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from src.file_lock import LockHeldError, hold_lock


class LiveRunError(RuntimeError):
    """Another process is at work in the run directory."""


@contextmanager
def lock_run(path: Path) -> Iterator[None]:
    """Holds the lock file at `path` while the block runs; a thread touches it as a sign of life.

    Raises:
        LiveRunError: when a living process holds it: which, and since when.
    """
    with ExitStack() as held:
        try:
            held.enter_context(hold_lock(path))
        except LockHeldError as error:
            if error.holder is None:
                message = f"Expected to take {path}, but another process took it first. Start again when it is done."
            else:
                message = (
                    f"Expected no other process at work in {path.parent}, got {error.holder}. Wait for it, "
                    "or stop it first."
                )
            raise LiveRunError(message) from None
        yield
