"""Executes one run: skip, resume or start over; lock, log, manifest, task, results."""

import json
import logging
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import lightning

from src import config, provenance
from src.files import digest_file, remove_leftovers, write_atomically, write_even_when_full
from src.interrupts import status_of
from src.lockstep import current_job
from src.log_file import LogFile
from src.run_lock import lock_run
from src.rundir import RunDir

_LOGGER = logging.getLogger(__name__)
_LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def execute(
    composed: Any, overrides: Sequence[str], function: Callable[[Any, RunDir], dict[str, float]] | None = None
) -> dict[str, float]:
    """Runs the task of a composed configuration in its own directory.

    Args:
        composed: the configuration as Hydra composed it.
        overrides: what the user typed, which fixes the directory.
        function: does the task's work in place of the one that the configuration names, with the same results.

    Returns:
        The run's final scalars, stored ones when it had finished before.

    Raises:
        ValueError: when the configuration is wrong, the directory holds a run of another configuration, or a run that
            this one was made from has changed since.
        LiveRunError: when another process is at work in the directory.
    """
    cfg = config.resolve(composed)
    rundir = open_rundir(cfg, overrides)
    if not cfg.overwrite and _is_up_to_date(cfg, rundir):
        _LOGGER.info("%s is finished: %s. overwrite=true starts over.", cfg.task.name, rundir.path)
        return rundir.read_results()
    with lock_run(rundir.lock_path):
        if cfg.overwrite or rundir.is_finished:
            _clear(rundir)
        remove_leftovers(rundir.path, recursive=True)
        with _logging_to(rundir):
            return _run_task(cfg, rundir, overrides, function or config.task_function(cfg.task._target_))


def open_rundir(cfg: Any, overrides: Sequence[str]) -> RunDir:
    """Returns the directory of a run, with the way to its upstream runs."""

    def locate(task: str) -> Any:
        if task == "train_sae" and cfg.sae_run is not None:
            return cfg.sae_run
        return config.locate_run(cfg, overrides, task)

    typed = [override for override in overrides if not override.startswith("task=")]
    return RunDir(config.locate_run(cfg, overrides, cfg.task.name), locate, " ".join(["python -m src.run", *typed]))


def _is_up_to_date(cfg: Any, rundir: RunDir) -> bool:
    """Whether the directory holds the finished run that is asked for.

    Raises:
        ValueError: when it holds another one, finished or not.
    """
    manifest = rundir.read_manifest()
    if manifest is None:
        return False
    if differences := config.differences(rundir.config_path, cfg):
        raise ValueError(
            f"Expected {rundir.path} to hold a run of this configuration, got one that differs:\n  "
            + "\n  ".join(differences)
            + "\nGive another name=<name>, or overwrite=true to start over."
        )
    if manifest["status"] != "completed":
        _LOGGER.info("Resuming the unfinished run %s.", rundir.path)
        return False
    if cfg.task.get("refresh", False):
        return manifest["gathered"] == gathered(cfg, rundir)
    for task, digest in manifest["upstream"].items():
        upstream = rundir.optional_upstream(task)
        if upstream is None or digest_file(upstream.manifest_path) != digest:
            raise ValueError(
                f"Expected the {task} run that {rundir.path} was made from to be as it was, got another one. "
                "overwrite=true makes this run again from the new one."
            )
    return True


def gathered(cfg: Any, rundir: RunDir) -> dict[str, str]:
    """Returns what a task that gathers other runs would read now: paths and digests."""
    module, _, _ = cfg.task._target_.rpartition(".")
    return {str(path): digest_file(path) for path in config.task_function(f"{module}.inputs")(cfg, rundir)}


def _run_task(
    cfg: Any, rundir: RunDir, overrides: Sequence[str], function: Callable[[Any, RunDir], dict[str, float]]
) -> dict[str, float]:
    _LOGGER.info("%s in %s", cfg.task.name, rundir.path)
    manifest = provenance.describe_run(cfg.seed, cfg.fold if cfg.task.scope == "fold" else None)
    _write_configuration(cfg, rundir, overrides)
    rundir.write_json(rundir.manifest_path, manifest)
    lightning.seed_everything(cfg.seed, workers=True, verbose=False)
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
    finally:
        if (wandb := sys.modules.get("wandb")) is not None and wandb.run is not None:
            wandb.finish()
    rundir.write_json(rundir.results_path, {key: float(value) for key, value in results.items()})
    manifest |= {
        "status": "completed",
        "ended": provenance.now(),
        "inputs": rundir.inputs,
        "upstream": rundir.upstreams,
        "outputs": [
            {"path": str(path.relative_to(rundir.path)), "bytes": path.stat().st_size} for path in _files(rundir)
        ],
    }
    if cfg.task.get("refresh", False):
        manifest["gathered"] = gathered(cfg, rundir)
    rundir.write_json(rundir.manifest_path, manifest)
    for key, value in results.items():
        _LOGGER.info("%s %s = %.4g", cfg.task.name, key, value)
    return json.loads(rundir.results_path.read_text())


def _write_configuration(cfg: Any, rundir: RunDir, overrides: Sequence[str]) -> None:
    """Writes config.yaml and Hydra's own record, which Hydra itself would write before the lock is held."""
    record = rundir.path / ".hydra"
    for path, text in (
        (rundir.config_path, config.to_yaml(cfg)),
        (record / "config.yaml", config.to_yaml(cfg)),
        (record / "overrides.yaml", "".join(f"- {override}\n" for override in overrides)),
    ):
        with write_atomically(path) as temporary:
            temporary.write_text(text)


def _files(rundir: RunDir) -> list[Any]:
    own = {rundir.lock_path, rundir.log_path, rundir.manifest_path}
    return sorted(path for path in rundir.path.rglob("*") if path.is_file() and path not in own)


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
    # Of several runs side by side in one process, each logs what is its own.
    if (job := current_job()) is not None:
        handler.addFilter(lambda _: current_job() is job)
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()
