"""Executes one run: skip, resume or start over; lock, log, manifest, task, results."""

import json
import logging
import os
import shutil
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Any

from src import config
from src.files import digest_file, remove_leftovers, write_atomically, write_even_when_full
from src.folder_names import part_folder
from src.inputs import digest_inputs
from src.interrupts import status_of
from src.runs import provenance
from src.runs.lineage import Lineage, Stale
from src.runs.lock import lock_run
from src.runs.log_file import LogFile
from src.runs.outputs import describe_outputs, digest_outputs
from src.runs.rundir import RunDir
from src.runs.stored_config import differences
from src.runs.tracking import tracking
from src.task_graph import STEPS

_LOGGER = logging.getLogger(__name__)
_LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def execute(
    composed: Any,
    overrides: Sequence[str],
    function: Callable[[Any, RunDir], dict[str, float]] | None = None,
    *,
    replace: bool = False,
) -> dict[str, float]:
    """Runs the task of a composed configuration in its own directory.

    Args:
        composed: the configuration as Hydra composed it.
        overrides: what the user typed, which fixes the directory.
        function: does the task's work in place of the one that the configuration names, with the same results.
        replace: makes a run again that is out of date, and leaves runs of other folds out that are; without it both are
            errors.

    Returns:
        The run's final scalars, stored ones when it had finished before.

    Raises:
        ValueError: when the configuration is wrong, the directory holds a run of another configuration, or this run or
            one that it builds on is out of date (`src.runs.lineage.StaleRunError`).
        LiveRunError: when another process is at work in the directory.
    """
    cfg = config.resolve(composed)
    if config.tasks()[cfg.task.name].scope == "none":
        config.check_start(cfg)
        return (function or config.task_function(cfg.task._target_))(cfg, RunDir(Path(cfg.paths.runs), is_begun=False))
    rundir = open_rundir(cfg, overrides)
    if not cfg.overwrite and rundir.is_finished:
        begin, why = _begin(cfg, rundir, overrides, replace)
        if begin is _Begin.NOT:
            _LOGGER.info("%s", why)
            return rundir.read_results()
    config.check_start(cfg)
    with ExitStack() as locks:
        for path in (rundir.lock_path, *_locks_of_data(cfg)):
            locks.enter_context(lock_run(path))
        # Looked at under the lock: another process may have finished the run since.
        begin, why = _begin(cfg, rundir, overrides, replace)
        if begin is _Begin.NOT:
            _LOGGER.info("%s", why)
            return rundir.read_results()
        if begin is _Begin.ANEW:
            _clear(rundir)
        remove_leftovers(rundir.path, recursive=True)
        rundir.is_begun = True
        with _logging_to(rundir), tracking(cfg, rundir):
            if why:
                _LOGGER.info("%s", why)
            for path, reason in rundir.left_out.items():
                _LOGGER.warning("Left out %s, which is out of date: %s", path, reason)
            return _run_task(cfg, rundir, overrides, function or config.task_function(cfg.task._target_))


def open_rundir(cfg: Any, overrides: Sequence[str]) -> RunDir:
    """Returns the directory of a run, with the way to its upstream runs; nothing is noted in it."""
    return Lineage(cfg, overrides).rundir(cfg.task.name)


def is_up_to_date(cfg: Any, overrides: Sequence[str]) -> bool:
    """Whether `execute` would leave a finished run as it is; raises what it would raise, and changes nothing."""
    rundir = open_rundir(cfg, overrides)
    if cfg.overwrite or not rundir.is_finished:
        return False
    return _begin(cfg, rundir, overrides, replace=False)[0] is _Begin.NOT


def optimized(results: dict[str, float], key: str | None) -> float | None:
    """Returns the result that `optimize` names, for sweepers.

    Raises:
        ValueError: when the task has no such result.
    """
    if key is not None and key not in results:
        raise ValueError(f"Expected optimize to be a result of the task ({', '.join(results)}), got {key!r}.")
    return None if key is None else results[key]


class _Begin(Enum):
    """What to do with a run directory: nothing, all from the start, or what an earlier start left undone."""

    NOT = "not"
    ANEW = "anew"
    AGAIN = "again"


def _begin(cfg: Any, rundir: RunDir, overrides: Sequence[str], replace: bool) -> tuple[_Begin, str]:
    """Decides how a run begins, and says why, from what its directory holds and what there is now.

    Raises:
        ValueError: when the directory holds a run of another configuration, or this run or one that it builds on is out
            of date.
    """
    task, lineage = cfg.task.name, Lineage(cfg, overrides)
    stale = lineage.stale_ancestors(task)
    gathers = config.tasks()[task].gathers
    if config.tasks()[task].upstream != STEPS:  # what runs steps makes them again
        others = [one for one in stale if replace and gathers]
        if refused := [one for one in stale if one not in others]:
            raise lineage.refuse(refused[0], task)
        rundir.left_out = {one.path: one.why for one in others}
    finished = (_Begin.NOT, f"{task} is finished: {rundir.path}. overwrite=true starts over.")
    resumed = (_Begin.AGAIN, f"Resuming the unfinished run {rundir.path}.")
    if cfg.overwrite and not provenance.began_before_requeue(rundir.manifest_path):
        return _Begin.ANEW, ""
    manifest = rundir.read_manifest()
    if manifest is None:
        return _Begin.AGAIN, ""
    if different := differences(rundir.config_path, cfg, task):
        raise ValueError(
            f"Expected {rundir.path} to hold a run of this configuration, got one that differs:\n  "
            + "\n  ".join(different)
            + "\nGive another name=<name>, or overwrite=true to start over."
        )
    if gathers:
        if manifest["status"] != "completed":
            return resumed
        is_same = not stale and not lineage.reasons(task, rundir) and manifest["gathered"] == gathered(cfg, rundir)
        return finished if is_same else (_Begin.ANEW, "")
    if reasons := lineage.reasons(task, rundir):
        is_of_use = manifest["status"] == "completed" or rundir.has_partial_work
        if is_of_use and not replace:
            raise lineage.refuse(Stale(task, rundir.fold, rundir.path, tuple(reasons)), task)
        rundir.replaces = True
        return _Begin.ANEW, f"Making {rundir.path} again: {'; '.join(reasons)}"
    if manifest["status"] != "completed":
        return resumed
    if gone := _gone(cfg, manifest):
        return _Begin.ANEW, f"Making {rundir.path} again: what it wrote is not there, {gone[0]} for one."
    return finished


def _locks_of_data(cfg: Any) -> Iterator[Path]:
    """Yields the locks of the folders that a task on a whole data set writes: runs elsewhere may write there too."""
    part = cfg.get(cfg.task.name, {}).get("part")
    for key in config.tasks()[cfg.task.name].writes:
        path = Path(cfg.dataset[key])
        if part is not None:  # parts write beside each other
            path = path / part_folder(part)
        yield path.parent / f".{path.name}.lock"


def _written(cfg: Any) -> dict[str, list[str]]:
    """Returns the files that a task on a whole data set wrote outside of its directory, by key of `dataset`."""
    found = {}
    for key in config.tasks()[cfg.task.name].writes:
        place = Path(cfg.dataset[key])
        paths = [place, *sorted(place.rglob("*"))]
        found[key] = [
            path.relative_to(place).as_posix() for path in paths if path.is_file() and not path.name.startswith(".")
        ]
    return found


def _gone(cfg: Any, manifest: dict[str, Any]) -> list[Path]:
    """Returns what a finished task on a whole data set wrote and that is not there."""
    return [
        path
        for key, names in manifest["written"].items()
        for name in names
        if not (path := Path(cfg.dataset[key]) / name).is_file()
    ]


def gathered(cfg: Any, rundir: RunDir) -> dict[str, str]:
    """Returns what a task that gathers other runs would read now: paths below the folder of runs, and digests."""
    module, _, _ = cfg.task._target_.rpartition(".")
    paths = config.task_function(f"{module}.inputs")(cfg, rundir)
    return {os.path.relpath(path, cfg.paths.runs): digest_file(path) for path in paths}


def _run_task(
    cfg: Any, rundir: RunDir, overrides: Sequence[str], function: Callable[[Any, RunDir], dict[str, float]]
) -> dict[str, float]:
    _LOGGER.info("%s in %s", cfg.task.name, rundir.path)
    manifest = provenance.describe_run(cfg.seed, cfg.fold if cfg.task.scope == "fold" else None)
    _write_configuration(cfg, rundir, overrides)
    rundir.write_json(rundir.manifest_path, manifest)
    _seed_everything(cfg.seed)
    try:
        results = function(cfg, rundir)
    except BaseException as error:
        manifest |= {"status": status_of(error), "error": f"{type(error).__name__}: {error}", "ended": provenance.now()}
        try:
            write_even_when_full(rundir.manifest_path, json.dumps(manifest, indent=2) + "\n")
            with open(rundir.log_path, "a") as log:  # the screen shows the message alone
                log.write(traceback.format_exc())
        except OSError as second:  # on a full disk: what the user must see is the first error
            _LOGGER.warning("The failure could not be noted in %s: %s", rundir.path, second)
        raise
    rundir.write_json(rundir.results_path, {key: float(value) for key, value in results.items()})
    outputs = describe_outputs(rundir.path, {*rundir.own_paths, rundir.manifest_path})
    upstream = rundir.upstreams()
    manifest |= {
        "status": "completed",
        "ended": provenance.now(),
        "inputs": digest_inputs(rundir.recorded()),
        "upstream": upstream,
        "ancestors": _ancestors(upstream),
        "written": _written(cfg),
        "digest": digest_outputs(outputs),
        "outputs": [asdict(output) for output in outputs],
    }
    if config.tasks()[cfg.task.name].gathers:
        manifest["gathered"] = gathered(cfg, rundir)
    rundir.write_json(rundir.manifest_path, manifest)
    for key, value in results.items():
        _LOGGER.info("%s %s = %.4g", cfg.task.name, key, value)
    return json.loads(rundir.results_path.read_text())


def _seed_everything(seed: int) -> None:
    import lightning  # takes seconds; a finished run is told without it

    lightning.seed_everything(seed, workers=True, verbose=False)


def _write_configuration(cfg: Any, rundir: RunDir, overrides: Sequence[str]) -> None:
    """Writes config.yaml and, where Hydra has it, what was typed; Hydra itself would before the lock is held."""
    for path, text in (
        (rundir.config_path, config.to_yaml(cfg)),
        (rundir.path / ".hydra" / "overrides.yaml", "".join(f"- {override}\n" for override in overrides)),
    ):
        with write_atomically(path) as temporary:
            temporary.write_text(text)


def _ancestors(upstream: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Returns the digest of every run, by its directory, that the given ones and those before them were made from."""
    found: dict[str, str] = {}
    for one in upstream.values():
        manifest = RunDir(Path(one["path"])).read_manifest() or {}
        found |= manifest.get("ancestors", {}) | {one["path"]: one["digest"]}
    return found


def _clear(rundir: RunDir) -> None:
    """Empties a run directory, but for nested runs and the lock that we hold."""
    for path in rundir.path.iterdir():
        if path == rundir.lock_path or (path / "manifest.json").is_file():
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


@contextmanager
def _logging_to(rundir: RunDir) -> Iterator[None]:
    handler = LogFile(rundir.log_path)
    handler.setFormatter(logging.Formatter(_LOG_FORMAT))
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()
