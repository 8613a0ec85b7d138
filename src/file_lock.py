"""A lock file that one process holds at a time, and that is recognised when its holder died."""

import json
import logging
import os
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

_LOGGER = logging.getLogger(__name__)
_HEARTBEAT_SECONDS = 15.0
# A holder on another host is dead when it missed this many seconds of heartbeats (clocks and file systems lag).
_STALE_SECONDS = 180.0
_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock; `process_started` tells it from a later one with the same id."""

    host: str
    pid: int
    process_started: str
    slurm_job: str | None
    since: float

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        return f"process {self.pid} on {self.host} (SLURM job {self.slurm_job}) since {since}"


# What a lock file says that cannot be read: a power cut, or someone's hand, has emptied it, and its holder is gone.
_UNREADABLE = Holder("unknown host", 0, "", None, 0.0)


@dataclass(frozen=True)
class LockReading:
    """A lock as it was found.

    Attributes:
        holder: who took it.
        is_alive: whether the holder is at work, as far as can be told: of another host, by its sign of life.
        is_here: whether the holder is on this host, where `is_alive` is certain.
        age: seconds since the last sign of life.
    """

    holder: Holder
    is_alive: bool
    is_here: bool
    age: float


def read_lock(path: Path) -> LockReading | None:
    """Returns who holds a lock file, None when nobody does; takes nothing."""
    holder = _read_holder(path)
    try:
        age = time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return None
    return None if holder is None else LockReading(holder, _is_alive(holder, path), holder.host == platform.node(), age)


class LockHeldError(RuntimeError):
    """A living process holds the lock; `holder` is None when it took the lock this very moment."""

    def __init__(self, path: Path, holder: Holder | None) -> None:
        super().__init__(f"Expected to take {path}, but {holder or 'another process'} holds it.")
        self.holder = holder


@contextmanager
def hold_lock(path: Path) -> Iterator[None]:
    """Holds the lock file at `path` while the block runs; a thread touches it as a sign of life.

    Raises:
        LockHeldError: when a living process holds it.
        OSError: when the folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    me = Holder(platform.node(), os.getpid(), _process_start(os.getpid()), os.environ.get("SLURM_JOB_ID"), time.time())
    _acquire(path, me)
    stop = threading.Event()
    heart = threading.Thread(target=_beat, args=(path, stop), daemon=True)
    heart.start()
    try:
        yield
    finally:
        stop.set()
        heart.join()
        # A process that was suspended for long may have lost its lock to another.
        if _read_holder(path) == me:
            path.unlink(missing_ok=True)


@contextmanager
def wait_for_lock(path: Path, task: str) -> Iterator[None]:
    """Holds the lock as `hold_lock` does, after waiting for whoever holds it.

    Args:
        path: the lock file.
        task: what is done under the lock, for the log: "packing".

    Raises:
        OSError: when the folder cannot be written.
    """
    with ExitStack() as held:
        told: Holder | None = None
        while True:
            try:
                held.enter_context(hold_lock(path))
                break
            except LockHeldError as error:
                if error.holder is not None and error.holder != told:
                    told = error.holder
                    _LOGGER.info("Waiting for %s, which is %s in %s.", told, task, path.parent)
                time.sleep(_POLL_SECONDS)
        yield


def _acquire(path: Path, me: Holder) -> None:
    for _ in range(2):
        # The full file is made aside and linked into place: a reader never sees an empty lock.
        aside = _aside(path)
        with open(aside, "w") as file:
            file.write(json.dumps(asdict(me)))
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(aside, path)
            _remove_old_asides(path)
            return
        except FileExistsError:
            holder = _read_holder(path)
            if holder is None:
                continue  # released meanwhile
            if _is_alive(holder, path):
                raise LockHeldError(path, holder) from None
            if holder == _UNREADABLE:
                _LOGGER.warning("Expected %s to name the process that holds it, got no such text; taking it.", path)
            else:
                _LOGGER.warning("The process that held %s (%s on %s) is gone.", path, holder.pid, holder.host)
            _remove_stale(path, holder)
        finally:
            aside.unlink(missing_ok=True)
    raise LockHeldError(path, None)


def _remove_stale(path: Path, holder: Holder) -> None:
    """Removes the lock of a dead holder; of two processes that do so, the later must not remove the earlier's lock."""
    aside = _aside(path)
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return
    try:
        if _read_holder(aside) != holder:
            os.link(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def _remove_old_asides(path: Path) -> None:
    """Removes what processes left that were killed while they asked for the lock."""
    for aside in path.parent.glob(f"{path.name}.*"):
        with suppress(FileNotFoundError):  # those of living processes come and go
            if time.time() - aside.stat().st_mtime > _STALE_SECONDS:
                aside.unlink()


def _aside(path: Path) -> Path:
    return path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}")


def _read_holder(path: Path) -> Holder | None:
    """Returns who holds a lock, None when nobody does."""
    try:
        return Holder(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):  # locks are linked into place whole: no living process is about to write it
        return _UNREADABLE


def _is_alive(holder: Holder, path: Path) -> bool:
    if holder == _UNREADABLE:
        return False
    if holder.host == platform.node():
        return _process_start(holder.pid) == holder.process_started != ""
    try:
        return time.time() - path.stat().st_mtime < _STALE_SECONDS
    except FileNotFoundError:
        return False


def _process_start(pid: int) -> str:
    """Returns the start time of a process in clock ticks, `""` when there is none: ids are used again, this is not.

    A zombie, which has ended and whose parent has not asked for its exit code yet, is none.
    """
    try:
        # The fields after the name, which may itself hold spaces and brackets: the 3rd of all is the state, the 22nd
        # the start time.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    except (FileNotFoundError, ProcessLookupError):
        pass
    if Path("/proc/self/stat").exists():
        return ""
    try:  # systems without /proc
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    return "unknown"


def _beat(path: Path, stop: threading.Event) -> None:
    while not stop.wait(_HEARTBEAT_SECONDS):
        try:
            os.utime(path)
        except FileNotFoundError:
            _LOGGER.error("The lock %s was removed while this process held it.", path)
            return
