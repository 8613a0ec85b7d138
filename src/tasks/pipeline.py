"""All tasks of a preset in order, in one process: those that are not finished and up to date, and have their inputs."""

import importlib
import logging
import time
from typing import Any

from src import config
from src.interrupts import keeping
from src.records import ALL
from src.runs.execution import execute
from src.runs.identity import run_path
from src.runs.lock import LiveRunError
from src.runs.rundir import RunDir

_LOGGER = logging.getLogger(__name__)
_SECONDS_BETWEEN_LOOKS = 5.0
_OF_SPLITS = ("splits", "summarize_cv")
_OF_LABELS = ("select_neurons", "train_mil", "train_probe", "steer", "summarize_cv")


def run(cfg: Any, rundir: RunDir) -> dict[str, float]:
    """Runs the steps that the tasks' declarations give, see `src.task_graph`.

    Every step has this run's configuration but for the task, so it lands where the command alone would put it. A step
    that is out of date is made again. A task module says by `missing_inputs(cfg) -> list[str]` why it cannot run on
    this dataset.

    Returns:
        The number of steps that were run (or had finished) and of those that were skipped.
    """
    done, skipped = _run_steps(cfg)
    rundir.write_json(rundir.path / "skipped.json", skipped)
    return {"n_steps": len(done), "n_skipped": len(skipped)}


def run_steps(cfg: Any, _: RunDir) -> dict[str, float]:
    """Runs the steps that `cluster.steps` names, for a job that does what folds share.

    Returns:
        The number of steps that were run (or had finished) and of those that were skipped.
    """
    done, skipped = _run_steps(cfg)
    return {"n_steps": len(done), "n_skipped": len(skipped)}


def inputs(cfg: Any, _: RunDir) -> list[Any]:
    """Returns the manifests of the steps: the pipeline is finished as long as none has changed.

    Steps that gather all folds are left out: another fold's pipeline makes them anew, which is no news for this one.
    """
    paths = [run_path(cfg, step) / "manifest.json" for step in config.tasks().upstream("pipeline")]
    return [path for path in paths if path.is_file()]


def why_skipped(cfg: Any, task: str) -> list[str]:
    """Returns why a step cannot run, or need not, under a configuration."""
    spec = config.tasks()[task]
    if path := config.tasks().given(cfg).get(task):
        return [f"{spec.run_key} names a run of it: {path}"]
    if cfg.fold == ALL and (spec.fits or task in _OF_SPLITS):
        return ["fold=all has no train items"]
    if cfg.fold != ALL and cfg.dataset.get("target", "label") is None and task in _OF_LABELS:
        return ["the data set has no labels: dataset.target is null"]
    module = importlib.import_module(spec.target.rpartition(".")[0])
    return module.missing_inputs(cfg) if hasattr(module, "missing_inputs") else []


def _run_steps(cfg: Any) -> tuple[list[str], dict[str, list[str]]]:
    """Runs the steps in order, and returns their names and the reasons of those that were skipped."""
    # What a launcher gave one of its jobs is no part of a command that a user would type.
    overrides = [one for one in config.hydra_overrides() if not one.startswith(("task=", "cluster."))]
    steps = [spec.name for spec in config.tasks().steps]
    if unknown := sorted({*(cfg.cluster.steps or ())} - {*steps}):
        raise ValueError(f"Expected cluster.steps to be some of {', '.join(steps)}, got {', '.join(unknown)}.")
    skipped: dict[str, list[str]] = {}
    done: list[str] = []
    with keeping(lambda: f"the finished steps {', '.join(done)}" if done else ""):
        for step in steps:
            step_cfg = config.with_task(cfg, step)
            is_elsewhere = cfg.cluster.steps is not None and step not in cfg.cluster.steps
            reasons = ["another job of the launch runs it"] if is_elsewhere else why_skipped(step_cfg, step)
            if reasons:
                skipped[step] = reasons
                if not is_elsewhere:
                    _LOGGER.info("Skipping %s: %s", step, "; ".join(reasons))
                continue
            started = time.monotonic()
            execute_step(step_cfg, [*overrides, f"task={step}"])
            done.append(step)
            _LOGGER.info("%s took %.1f s", step, time.monotonic() - started)
    return done, skipped


def execute_step(composed: Any, overrides: list[str]) -> dict[str, float]:
    """Executes a step; when another process (the job of another fold, say) is making the same run, waits for it."""
    while True:
        try:
            return execute(composed, overrides, replace=True)
        except LiveRunError as error:
            if composed.task.scope == "fold":
                raise
            _LOGGER.info("Waiting: %s", error)
            time.sleep(_SECONDS_BETWEEN_LOOKS)
