"""Worker processes that end with the process that started them, however that ends."""

import ctypes
import logging
import multiprocessing
import multiprocessing.process
import os
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

_LOGGER = logging.getLogger(__name__)
_PR_SET_PDEATHSIG = 1  # prctl(2)


@contextmanager
def worker_pool(n_workers: int) -> Iterator[ProcessPoolExecutor]:
    """Yields a pool whose workers end with this process, also by kill -9, and at once when the block fails.

    The executor's own end would wait for what its workers have begun, minutes on a large slide.

    Args:
        n_workers: processes.
    """
    pool = ProcessPoolExecutor(max_workers=n_workers, initializer=end_with_parent)
    try:
        yield pool
    except BaseException:
        kill_workers()
        pool.shutdown(cancel_futures=True)
        raise
    pool.shutdown()


def kill_workers() -> None:
    """Ends at once all processes that multiprocessing started for this one."""
    for process in multiprocessing.active_children():
        process.kill()


def end_with_parent() -> None:
    """Makes this worker process end when its parent is gone; the first thing that a worker does.

    Linux kills it, by PR_SET_PDEATHSIG; on every system a thread watches the parent as well, because that signal
    follows the thread that started the worker. Interrupts are left to the parent: a worker prints nothing at Ctrl-C,
    which reaches all processes of a terminal, nor at SIGUSR2, which SLURM sends to all of a job before its time ends.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    if parent is None:
        raise ValueError("Expected to be called in a process that multiprocessing started, got the main process.")
    if sys.platform == "linux" and ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        _LOGGER.warning("prctl(PR_SET_PDEATHSIG) failed: %s", os.strerror(ctypes.get_errno()))
    # Also sees a parent that ended before the signal was asked for.
    threading.Thread(target=_watch, args=(parent,), name="parent watch", daemon=True).start()


def _watch(parent: multiprocessing.process.BaseProcess) -> None:
    parent.join()
    os._exit(1)
