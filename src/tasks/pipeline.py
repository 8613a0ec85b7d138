"""All tasks of a preset in order, in one process: those that are not finished and up to date, and have their inputs."""

import importlib
import logging
import time
from typing import Any

from src import config
from src.interrupts import keeping
from src.runs.execution import execute
from src.runs.lock import LiveRunError
from src.runs.rundir import RunDir

_LOGGER = logging.getLogger(__name__)
_SECONDS_BETWEEN_LOOKS = 5.0


def run(cfg: Any, rundir: RunDir) -> dict[str, float]:
    """Runs `cfg.task.steps`.

    Every step is composed anew with the same overrides plus `task=<step>`, so it lands where the command alone would
    put it. A step that is out of date is made again. A task module says by `missing_inputs(cfg) -> list[str]` why it
    cannot run on this dataset.

    Returns:
        The number of steps that were run (or had finished) and of those that were skipped.
    """
    overrides = [override for override in config.hydra_overrides() if not override.startswith("task=")]
    skipped: dict[str, list[str]] = {}
    done: list[str] = []
    with keeping(lambda: f"the finished steps {', '.join(done)}" if done else ""):
        _run_steps(cfg.task.steps, overrides, skipped, done)
    rundir.write_json(rundir.path / "skipped.json", skipped)
    return {"n_steps": len(done), "n_skipped": len(skipped)}


def _run_steps(steps: list[str], overrides: list[str], skipped: dict[str, list[str]], done: list[str]) -> None:
    for step in steps:
        typed = [*overrides, f"task={step}"]
        composed = config.compose(typed)
        if reasons := _missing_inputs(composed):
            skipped[step] = reasons
            _LOGGER.info("Skipping %s: %s", step, "; ".join(reasons))
            continue
        started = time.monotonic()
        _execute(composed, typed)
        done.append(step)
        _LOGGER.info("%s took %.1f s", step, time.monotonic() - started)


def inputs(cfg: Any, _: RunDir) -> list[Any]:
    """Returns the manifests of the steps: the pipeline is finished as long as none has changed.

    Steps that gather all folds are left out: another fold's pipeline makes them anew, which is no news for this one.
    """
    steps = [step for step in cfg.task.steps if config.task_spec(step).scope != "name"]
    paths = [config.locate_run(cfg, config.hydra_overrides(), step) / "manifest.json" for step in steps]
    return [path for path in paths if path.is_file()]


def _missing_inputs(composed: Any) -> list[str]:
    if composed.task.name == "train_sae" and composed.sae_run is not None:
        return [f"sae_run names an SAE: {composed.sae_run}"]
    module = importlib.import_module(composed.task._target_.rpartition(".")[0])
    return module.missing_inputs(composed) if hasattr(module, "missing_inputs") else []


def _execute(composed: Any, overrides: list[str]) -> dict[str, float]:
    """Executes a step; when another process (the job of another fold, say) is making the same run, waits for it."""
    while True:
        try:
            return execute(composed, overrides, replace=True)
        except LiveRunError as error:
            if composed.task.scope == "fold":
                raise
            _LOGGER.info("Waiting: %s", error)
            time.sleep(_SECONDS_BETWEEN_LOOKS)
