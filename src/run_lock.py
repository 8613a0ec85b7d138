"""One process writes a run directory at a time, and a lock whose holder died is recognised."""

import json
import logging
import os
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LOGGER = logging.getLogger(__name__)
_HEARTBEAT_SECONDS = 15.0
# A holder on another host is dead when it missed this many seconds of heartbeats (clocks and file systems lag).
_STALE_SECONDS = 180.0


class LiveRunError(RuntimeError):
    """Another process is at work in the run directory."""


@contextmanager
def lock_run(path: Path) -> Iterator[None]:
    """Holds the lock file at `path` while the block runs; a thread touches it as a sign of life.

    Raises:
        LiveRunError: when a living process holds it: which, and since when.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _acquire(path)
    stop = threading.Event()
    heart = threading.Thread(target=_beat, args=(path, stop), daemon=True)
    heart.start()
    try:
        yield
    finally:
        stop.set()
        heart.join()
        path.unlink(missing_ok=True)


def _acquire(path: Path) -> None:
    me = {
        "host": platform.node(),
        "pid": os.getpid(),
        "process_started": _process_start(os.getpid()),
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
        "since": time.time(),
    }
    for _ in range(2):
        # The full file is made aside and linked into place: a reader never sees an empty lock.
        aside = path.with_name(f"{path.name}.{os.getpid()}")
        aside.write_text(json.dumps(me))
        try:
            os.link(aside, path)
            return
        except FileExistsError:
            holder = json.loads(path.read_text())
            if _is_alive(holder, path):
                since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(holder["since"]))
                raise LiveRunError(
                    f"Expected no other process at work in {path.parent}, got process {holder['pid']} on "
                    f"{holder['host']} (SLURM job {holder['slurm_job']}) since {since}. Wait for it, or stop it first."
                ) from None
            _LOGGER.warning("The process that held %s (%s on %s) is gone.", path, holder["pid"], holder["host"])
            path.unlink(missing_ok=True)
        finally:
            aside.unlink(missing_ok=True)
    raise LiveRunError(f"Expected to take {path}, but another process took it first. Start again when it is done.")


def _is_alive(holder: dict, path: Path) -> bool:
    if holder["host"] == platform.node():
        return _process_start(holder["pid"]) == holder["process_started"] != ""
    return time.time() - path.stat().st_mtime < _STALE_SECONDS


def _process_start(pid: int) -> str:
    """Returns the start time of a process in clock ticks, `""` when there is none: ids are used again, this is not."""
    try:
        # The fields after the name, which may itself hold spaces and brackets; the 22nd of all is the start time.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except FileNotFoundError:
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
        os.utime(path)
