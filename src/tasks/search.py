"""Tries settings that Optuna proposes; each trial is a usual run, with a directory of its own."""

import itertools
import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from src import config
from src.analysis.search_figures import plot_history, plot_pareto
from src.analysis.search_study import (
    begin_trial,
    corners,
    end_trial,
    n_ended,
    open_study,
    overrides_of,
    tabulate_trials,
)
from src.inputs import RUN, Input
from src.interrupts import keeping
from src.report.page import Page
from src.runs.identity import run_path
from src.runs.rundir import RunDir
from src.task_graph import STEPS
from src.tasks.pipeline import execute_step, why_skipped

_LOGGER = logging.getLogger(__name__)
# Failed trials after which, when none has ended well, something else than the values must be wrong.
_FAILURES = 3


class TrialError(Exception):
    """A trial's own failure (its training diverged, say), which does not end the search."""


def run(cfg: Any, rundir: RunDir) -> dict[str, float]:
    """Runs `search.n_trials` trials of `search.task`, and before it the steps that it builds on.

    The trials stand in `study.sqlite`. A search that was stopped goes on with them: the trial that was at work is
    resumed in its directory, with the values that it had. `analysis/trials.csv` lists all.

    Returns:
        The best value of each objective, how many trials there are, how many failed, and how many no other beats.

    Raises:
        ValueError: when the space or the objectives are wrong, or all trials failed.
    """
    search = config.to_container(cfg.search)
    objectives = [*search["maximize"], *search["minimize"]]
    typed = _typed()
    _check(search, objectives, typed)
    directions = ["maximize"] * len(search["maximize"]) + ["minimize"] * len(search["minimize"])
    n_trials = search["n_trials"]
    with open_study(rundir.path / "study.sqlite", directions) as study:
        with keeping(lambda: f"{n_ended(study)} of {n_trials} trials"):
            while n_ended(study) < n_trials:
                trial = begin_trial(study, search["space"], search["sampler"], search["seed"])
                _run_trial(cfg, study, trial, typed, objectives)
                _refuse_failures(study, min(_FAILURES, n_trials))
        _refuse_failures(study, 1)
        table = tabulate_trials(study, objectives)
    ended = table.loc[table["state"] == "complete"]
    rundir.record(*_shared_inputs([Path(cfg.paths.runs) / path for path in ended["run"]]))
    _write_page(cfg, rundir, table, objectives, typed)
    best = {key: ended[key].agg("max" if key in search["maximize"] else "min") for key in objectives}
    counts = {"n_trials": len(table), "n_failed": len(table) - len(ended), "n_best": sum(table["best"].tolist())}
    return counts | {key: float(value) for key, value in best.items()}


def _refuse_failures(study: Any, n_failures: int) -> None:
    """Ends a search of which no trial has ended well and as many have failed."""
    trials = study.get_trials(deepcopy=False)
    errors = [trial.user_attrs["error"] for trial in trials if "error" in trial.user_attrs]
    if len(errors) >= n_failures and not any(trial.values for trial in trials):
        raise ValueError(
            f"Expected trials that end, got {len(errors)} that failed and no other, the first with: {errors[0]} Mend "
            "it, or the space, and start again; overwrite=true forgets these trials."
        )


def _typed() -> list[str]:
    """Returns what a trial has of the command line: all but the task and the search, which alone is started over."""
    own = ("task", "search", "overwrite")
    return [one for one in config.hydra_overrides() if _key(one).partition(".")[0] not in own]


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


def _check(search: dict[str, Any], objectives: Sequence[str], typed: Sequence[str]) -> None:
    spec = config.tasks()[search["task"]]
    if spec.scope != "fold" or spec.upstream == STEPS:
        raise ValueError(f"Expected search.task to be a single task of a fold, got {spec.name}.")
    if not search["space"] or not objectives:
        raise ValueError(
            "Expected keys in search.space and results in search.maximize or search.minimize, got "
            f"{search['space']} and {list(objectives)}: give search=<name>, see conf/search."
        )
    if twice := sorted(set(map(_key, typed)) & set(search["space"])):
        raise ValueError(f"Expected keys in search.space that are not typed too, got {', '.join(twice)}.")
    for values in corners(search["space"]):
        config.resolve(_compose(search["task"], [*typed, *overrides_of(values)])[0])


def _compose(task: str, overrides: Sequence[str]) -> tuple[Any, list[str]]:
    """Returns the configuration of a trial, and what is typed for it but for the task."""
    composed, typed = config.compose([*overrides, f"task={task}"]), list(overrides)
    if composed.search.space:  # of the preset
        typed.append("search=default")
        composed = config.compose([*typed, f"task={task}"])
    return composed, typed


def _run_trial(cfg: Any, study: Any, trial: Any, typed: Sequence[str], objectives: Sequence[str]) -> None:
    tried = overrides_of(trial.params)
    trial.set_user_attr("tried", tried)
    _LOGGER.info("Trial %d: %s", trial.number, " ".join(tried))
    values = None
    try:
        path, results = _run_steps(cfg.search.task, [*typed, *tried])
        trial.set_user_attr("run", os.path.relpath(path, cfg.paths.runs))
        values = _values(results, objectives)
    except TrialError as error:
        trial.set_user_attr("error", str(error))
        _LOGGER.warning("Trial %d failed: %s", trial.number, error)
    end_trial(study, trial, values)
    if values is not None:
        reached = ", ".join(f"{key} = {value:.4g}" for key, value in zip(objectives, values, strict=True))
        _LOGGER.info("Trial %d of %d: %s", trial.number + 1, cfg.search.n_trials, reached)


def _run_steps(task: str, overrides: Sequence[str]) -> tuple[Path, dict[str, float]]:
    """Runs a task and before it what it builds on, as the pipeline does, and returns its directory and results.

    Raises:
        TrialError: when the values cannot be had together, or a step failed at its work and not for want of files.
    """
    composed, typed = _compose(task, overrides)
    try:
        cfg = config.resolve(composed)
    except ValueError as error:
        raise TrialError(str(error)) from error
    graph = config.tasks()
    for step in graph.before(task, graph.given(cfg)):
        step_cfg = config.with_task(cfg, step)
        if step != task and (not graph[step].is_step or why_skipped(step_cfg, step)):
            continue
        path = run_path(step_cfg, step)
        try:
            results = execute_step(step_cfg, [*typed, f"task={step}"])
        except Exception as error:
            manifest = RunDir(path).read_manifest() or {}
            has_begun = manifest.get("error") == f"{type(error).__name__}: {error}"
            if isinstance(error, OSError) or not has_begun:
                raise
            raise TrialError(f"{step}: {error}") from error
    return path, results  # pyright: ignore[reportPossiblyUnboundVariable] - the last step is the task


def _values(results: dict[str, float], objectives: Sequence[str]) -> list[float]:
    if missing := [key for key in objectives if key not in results]:
        raise ValueError(
            f"Expected search.maximize and search.minimize to name results of the task ({', '.join(results)}), got "
            f"{', '.join(missing)}."
        )
    values = [results[key] for key in objectives]
    if not all(map(math.isfinite, values)):
        raise TrialError(f"its results are not finite: {dict(zip(objectives, values, strict=True))}")
    return values


def _shared_inputs(paths: Sequence[Path]) -> list[Input]:
    """Returns what all runs have read alike, but for other runs: when that changes, the search is out of date."""
    each = [{one.key: one for one in RunDir(path).recorded() if one.what != RUN} for path in dict.fromkeys(paths)]
    first, *others = each
    return [one for key, one in first.items() if all(key in read and read[key].digest == one.digest for read in others)]


def _write_page(cfg: Any, rundir: RunDir, table: pd.DataFrame, objectives: Sequence[str], typed: Sequence[str]) -> None:
    search, ended = cfg.search, table.loc[table["state"] == "complete"]
    sign = {key: "higher" if key in search.maximize else "lower" for key in objectives}
    if len(objectives) == 1:
        figure = plot_history(
            ended["trial"].tolist(), ended[objectives[0]].tolist(), objectives[0], sign[objectives[0]] == "higher"
        )
        rundir.add_figure("history", figure, "What each trial reached, in order.")
    for number, pair in enumerate(itertools.combinations(reversed(objectives), 2)):
        x, y = (ended[key].tolist() for key in pair)
        x_name, y_name = (f"{key} ({sign[key]} is better)" for key in pair)
        figure = plot_pareto(x, y, ended["best"].tolist(), ended["trial"].tolist(), (x_name, y_name))
        caption = f"{pair[1]} against {pair[0]}; numbers are trials of the table."
        rundir.add_figure("pareto" if number == 0 else f"pareto_{number}", figure, caption)
    shown = table.sort_values(["best", objectives[0]], ascending=[False, sign[objectives[0]] == "lower"])
    rundir.add_table("trials", shown, "All trials, the best first; `run` is a directory below paths.runs.", 30)
    tried = [key for key in search.space if key in table]
    first = shown.iloc[0]
    command = " ".join(["python -m src.run", *typed, *(f"{key}={first[key]}" for key in tried), f"task={search.task}"])
    aims = ", ".join(f"{key} ({sign[key]} is better)" for key in objectives)
    text = (
        f"{len(table)} trials of {search.task} over {', '.join(tried)}, proposed by {search.sampler}; "
        f"{len(table) - len(ended)} failed. A trial is best when no other is as good in all of {aims} and better in "
        f"one. The run of trial {first['trial']}: {command}"
    )
    _LOGGER.info("%s", text)
    rundir.write_page(Page("Search of settings", [text], {"n_trials": len(table)}))
