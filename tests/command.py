"""The command `python -m src.run`, forked from a process that has imported everything.

Starting Python with torch and Lightning takes six seconds, of which a test of the command learns nothing. What a start
itself does is tested in `test_mistakes.py` and `test_task_graph.py`, by real ones.
"""

import atexit
import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    [
        *("lightning.pytorch", "lightning.pytorch.loggers", "matplotlib.pyplot", "openslide", "skimage", "tifffile"),
        *("sklearn.linear_model", "sklearn.model_selection", "timm", "torchmetrics", "hydra.main"),
        *(f"src.tasks.{path.stem}" for path in sorted(Path("src/tasks").glob("[!_]*.py"))),
        "tests.composed",
    ]
)


class Command:
    """A started command.

    Args:
        typed: what follows `python -m src.run`.
    """

    def __init__(self, typed: Sequence[str]) -> None:
        descriptor, self._log = tempfile.mkstemp(suffix=".log")
        os.close(descriptor)
        # A child of the server sees the variables that the server was started with.
        self._process = _FORKS.Process(target=_start, args=(list(typed), self._log, dict(os.environ)))
        self._process.start()
        self.pid = self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether it still runs."""
        return self._process.is_alive()

    def send_signal(self, number: int) -> None:
        """Sends it a signal, once it is there to handle it."""
        os.kill(self.pid, number)

    def wait(self, timeout: float = 600) -> tuple[int, str]:
        """Returns its exit code (negative: the signal that ended it) and what it said, on both streams.

        Raises:
            TimeoutError: when it has not ended in `timeout` seconds; it is killed.
        """
        self._process.join(timeout)
        said = Path(self._log).read_text()
        if self._process.is_alive():
            self._process.kill()
            raise TimeoutError(f"The command has not ended in {timeout} s:\n{said}")
        os.unlink(self._log)
        return self._process.exitcode, said


def run_command(*typed: str, code: int = 0) -> str:
    """Runs the command to its end and returns what it said.

    Raises:
        AssertionError: when it ended with another exit code.
    """
    found, said = Command(typed).wait()
    assert found == code, said
    return said


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    """Waits until a condition holds.

    Raises:
        AssertionError: when it does not in time.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def _start(typed: list[str], log: str, environment: dict[str, str]) -> None:
    _FORKS.set_forkserver_preload(["__main__"])  # the default, for servers that the command itself starts
    os.setsid()  # Ctrl-C of a terminal goes to a whole group
    output = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["src/run.py", *typed]
    try:
        runpy.run_module("src.run", run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()  # which a child of multiprocessing leaves out
