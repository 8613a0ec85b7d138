"""Works off the stages of a plan in processes of this machine, some at once, the threads divided among them."""

import logging
import os
import queue
import shlex
import subprocess
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from src.launching.plan import Command, Plan
from src.runs.jobs import FILE, JobRow, write_jobs

_LOGGER = logging.getLogger(__name__)


def announce(plan: Plan, folder: Path, runs: Path) -> None:
    """Writes jobs.csv, so that what waits is known."""
    rows = [
        JobRow(path.absolute(), "", stage.name, _text(command), _log(folder, number, index), folder)
        for number, stage in enumerate(plan.stages)
        for index, command in enumerate(stage.commands)
        for path in command.run_dirs
    ]
    write_jobs(folder, runs, rows)
    _LOGGER.info(
        "Logs: %s/<job>.log. Jobs and their run directories: %s.\nHow far they are: python -m src.run task=status.",
        folder / "workers",
        folder / FILE,
    )


def work(plan: Plan, cluster: Mapping[str, Any], folder: Path) -> None:
    """Runs the commands, `cluster.n_jobs` at once, stage after stage.

    When one of the commands failed that a stage needs, that stage and those after it are left out. When this process
    is interrupted, so are its workers.
    """
    threads = cluster["threads"] or max(1, _n_cpus() // cluster["n_jobs"])
    slots: queue.SimpleQueue[int] = queue.SimpleQueue()
    for slot in range(cluster["n_jobs"]):
        slots.put(slot)
    processes: set[subprocess.Popen[bytes]] = set()
    starting = threading.Lock()
    is_stopped = False

    def start(command: Command, log: Path) -> int:
        slot = slots.get()
        try:
            return work_in(slot, command, log)
        finally:
            slots.put(slot)

    def work_in(slot: int, command: Command, log: Path) -> int:
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        if cluster["gpu_ids"]:
            environment["CUDA_VISIBLE_DEVICES"] = str(cluster["gpu_ids"][slot % len(cluster["gpu_ids"])])
        with starting:
            if is_stopped:
                return -1
            log.parent.mkdir(parents=True, exist_ok=True)
            with open(log, "wb") as file:
                process = subprocess.Popen(
                    [sys.executable, "-m", "src.run", *command.overrides],
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    env=environment,
                )
            processes.add(process)
        code = process.wait()
        processes.discard(process)
        if code:
            _LOGGER.warning("Failed: %s; its log: %s", _text(command), log)
        return code

    failed = False
    with ThreadPoolExecutor(cluster["n_jobs"]) as pool:
        try:
            for number, stage in enumerate(plan.stages):
                if failed and stage.needs_success:
                    left_out = ", ".join(one.name for one in plan.stages[number:])
                    _LOGGER.warning("Left out, because of what failed before it: %s.", left_out)
                    break
                _LOGGER.info("%s: %d jobs, %d at once.", stage.name, len(stage.commands), cluster["n_jobs"])
                logs = [_log(folder, number, index) for index in range(len(stage.commands))]
                failed = any(list(pool.map(start, stage.commands, logs)))  # all end before the next stage
        except BaseException:
            with starting:
                is_stopped = True
                for process in list(processes):
                    process.terminate()
            raise


def _n_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _log(folder: Path, number: int, index: int) -> Path:
    return folder / "workers" / f"{number}_{index}.log"


def _text(command: Command) -> str:
    return shlex.join(["python", "-m", "src.run", *command.overrides])
