"""Kills every task at its file operations and starts it again: a command of its own, for `test_kill_points.py`.

Starts are slow, so this process imports everything once and forks a child per start. It works on no tensors and starts
no threads itself: a child of a process with OpenMP threads would wait for threads that it does not have.
"""

import argparse
import ctypes
import functools
import hashlib
import importlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from torch.utils._pytree import tree_flatten_with_path

from src import config
from src.inputs import digest_inputs, read_inputs
from src.runs.execution import execute
from src.runs.identity import run_path
from src.training import metrics_csv

# Not os.mkdir: threads that make one folder at a time try it a varying number of times.
_EVENTS = {"os.rename", "os.link", "os.remove", "os.rmdir", "os.truncate"}
# What differs between two runs of one configuration: times, process ids, and what follows from them.
_OF_THE_START = ("started", "ended", "argv", "git", "outputs", "gathered")


class Workplace:
    """A folder in which tasks run, are killed, and are compared with an uninterrupted run."""

    def __init__(self, path: Path) -> None:
        self.path = path / "work"
        self._before = path / "before"
        self._log = path / "log.txt"

    def keep(self) -> None:
        """Remembers the folder as it is now."""
        shutil.rmtree(self._before, ignore_errors=True)
        shutil.copytree(self.path, self._before)

    def restore(self) -> None:
        """Makes the folder what it was when it was kept."""
        shutil.rmtree(self.path)
        shutil.copytree(self._before, self.path)

    def start(self, overrides: Sequence[str], kill_at: int | None = None) -> int:
        """Runs a task in a child process, which is killed before file operation number `kill_at`.

        Returns:
            The number of file operations that were begun.

        Raises:
            RuntimeError: when the child failed, or ended before it could be killed.
        """
        composed = _compose(tuple(overrides))
        count = multiprocessing.Value(ctypes.c_long, 0)
        child = os.fork()
        if child == 0:
            try:
                log = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(log, 1)
                os.dup2(log, 2)
                os.setsid()
                self._count_operations(count, kill_at)
                config.hydra_overrides = lambda: list(overrides)  # what the sweep asks for
                execute(composed, overrides)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        if code != (0 if kill_at is None else -signal.SIGKILL):
            raise RuntimeError(
                f"{overrides[-1]} ended with {code}, kill at {kill_at}:\n{self._log.read_text()[-4000:]}"
            )
        return count.value

    def _count_operations(self, count: "ctypes.c_long", kill_at: int | None) -> None:
        main, folder = os.getpid(), str(self.path)

        def operation() -> None:
            with count.get_lock():
                number, count.value = count.value, count.value + 1
            if number == kill_at:
                os.kill(main, signal.SIGKILL)  # also from a worker process, which ends with it
                signal.pause()

        def hook(event: str, arguments: tuple) -> None:
            if event == "open":
                path, _, flags = arguments
                writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
                if writes and str(path).startswith(folder):
                    operation()
            elif event in _EVENTS and str(arguments[0]).startswith(folder):
                operation()

        sync = os.fsync

        def fsync(handle: int) -> None:
            operation()
            sync(handle)

        os.fsync = fsync
        sys.addaudithook(hook)

    def contents(self) -> dict[str, str]:
        """Returns a digest of every file; of manifests, of what two runs have in common.

        Logs are left out, and the locks of dead processes, which hold nothing.
        """
        found = {}
        for path in sorted(self.path.rglob("*")):
            if path.is_file() and path.name != "run.log" and path.suffix != ".lock" and path.name != ".lock":
                content = path.read_bytes()
                if path.name == "manifest.json":
                    manifest = json.loads(content)
                    content = json.dumps({key: manifest[key] for key in manifest if key not in _OF_THE_START}).encode()
                elif path.name == "inputs.csv":
                    content = digest_inputs(read_inputs(path)).encode()
                elif path.suffix == ".ckpt":
                    # Equal values, that a resumed run pickles in another order. Started after the last epoch, Lightning
                    # saves once more, with its own counters one epoch on.
                    saved = torch.load(path, weights_only=False)
                    saved = {key: saved[key] for key in saved if key not in ("loops", "callbacks", "epoch")}
                    leaves, structure = tree_flatten_with_path(saved)
                    values = [leaf.numpy() if isinstance(leaf, torch.Tensor) else leaf for _, leaf in leaves]
                    parts = [value.tobytes() if isinstance(value, np.ndarray) else repr(value) for value in values]
                    content = repr((structure, parts)).encode()
                found[str(path.relative_to(self.path))] = hashlib.blake2b(content).hexdigest()
        return found


@functools.cache
def _compose(overrides: tuple[str, ...]) -> DictConfig:
    """Composes a configuration, and what its run directory is named by, which the children then find composed."""
    composed = config.compose(overrides)
    run_path(config.resolve(composed), composed.task.name)
    return composed


def kill_everywhere(workplace: Workplace, overrides: Sequence[str], n_kills: int) -> dict[str, object]:
    """Runs a task; then, from the same start, kills it at `n_kills` of its operations and starts it again each time.

    Returns:
        How many operations there are, and of each kill the files that then differ from the uninterrupted run's.
    """
    workplace.keep()
    n_operations = workplace.start(overrides)
    expected = workplace.contents()
    differing = {}
    for index in range(n_kills):
        kill_at = index * (n_operations - 1) // max(n_kills - 1, 1)
        workplace.restore()
        workplace.start(overrides, kill_at)
        workplace.start(overrides)
        found = workplace.contents()
        differing[str(kill_at)] = [name for name in {*expected, *found} if expected.get(name) != found.get(name)]
    return {"n_operations": n_operations, "differing": differing}


def main() -> None:
    """Reads a plan of tasks from the command line and writes what came of them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("plan", type=Path)
    plan = json.loads(parser.parse_args().plan.read_text())
    torch.set_num_threads(1)
    config.register_resolvers()
    metrics_csv._SHARE_OF_TIME = float("inf")  # written at every step: the operations are the same in every run
    for name in plan["modules"]:
        importlib.import_module(name)
    workplace = Workplace(Path(plan["folder"]))
    found = {}
    for task, n_kills in plan["tasks"].items():
        overrides = plan["base"].get(task, plan["overrides"])
        for before in plan["before"].get(task, []):
            workplace.start([*overrides, f"task={before}"])
        found[task] = kill_everywhere(workplace, [*overrides, f"task={task}"], n_kills)
        (workplace.path.parent / "found.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
