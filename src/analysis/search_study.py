"""A search's study: settings that Optuna proposes one after the other, and what came of them, in a SQLite file."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    import optuna

_NAME = "search"
# So that a number can be typed, and the run directory that it names be read.
_DIGITS = 4


@contextmanager
def open_study(path: Path, directions: Sequence[str]) -> "Iterator[optuna.Study]":
    """Opens the study at `path` while the block runs, made when there is none (Akiba et al., "Optuna", KDD 2019).

    Args:
        path: a SQLite file, which Optuna's own tools read too.
        directions: `maximize` or `minimize`, of each objective.

    Raises:
        ValueError: when Optuna is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise ValueError(
            f"Expected Optuna for a search, got {error}. Install what pyproject.toml lists as the extra `search`: "
            "pip install optuna."
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.RDBStorage(f"sqlite:///{path}")
    aims = [optuna.study.StudyDirection[direction.upper()] for direction in directions]
    try:
        yield optuna.create_study(storage=storage, study_name=_NAME, directions=aims, load_if_exists=True)
    finally:
        storage.remove_session()
        storage.engine.dispose()


def n_ended(study: "optuna.Study") -> int:
    """Returns how many trials have ended, with values or without."""
    return sum(trial.state.is_finished() for trial in study.get_trials(deepcopy=False))


def begin_trial(study: "optuna.Study", space: Mapping[str, Mapping[str, Any]], sampler: str, seed: int) -> Any:
    """Returns the trial to run now: one that a process began and, being killed, did not end, else a new one.

    What is proposed depends on the seed, the trial's number and the results so far alone: a search that was stopped
    and goes on proposes what it would have proposed without the stop.

    Args:
        study: the study, which no other process is at work on.
        space: of each key `low` and `high` (with `log`, `step`), or `choices`.
        sampler: `tpe`, for several objectives too (Bergstra et al., NeurIPS 2011; Ozaki et al., GECCO 2020);
            `nsga2` (Deb et al., 2002); `random`. With Optuna's own settings.
        seed: of the sampler.

    Returns:
        An Optuna trial, its `params` set.
    """
    import optuna

    begun = study.get_trials(states=(optuna.trial.TrialState.RUNNING,))
    number = begun[0].number if begun else len(study.trials)
    samplers = {"tpe": "TPESampler", "nsga2": "NSGAIISampler", "random": "RandomSampler"}
    study.sampler = getattr(optuna.samplers, samplers[sampler])(seed=seed + number)
    trial = optuna.trial.Trial(study, begun[0]._trial_id) if begun else study.ask()
    for key, axis in space.items():  # gives again what was suggested before
        _suggest(trial, key, axis)
    return trial


def end_trial(study: "optuna.Study", trial: Any, values: Sequence[float] | None) -> None:
    """Notes what came of a trial; None: it failed."""
    import optuna

    study.tell(trial, values, state=optuna.trial.TrialState.FAIL if values is None else None)


def tabulate_trials(study: "optuna.Study", objectives: Sequence[str]) -> pd.DataFrame:
    """Returns a row a trial: number, state, whether no other trial is better, what was tried, what came of it, notes.

    Args:
        study: the study, whose trials note under `tried` the overrides of `overrides_of`.
        objectives: their names.
    """
    best = {trial.number for trial in study.best_trials}
    rows = []
    for trial in study.get_trials(deepcopy=False):
        notes = dict(trial.user_attrs)
        tried = dict(override.split("=", 1) for override in notes.pop("tried", []))
        values = dict(zip(objectives, trial.values or (), strict=False))
        row = {"trial": trial.number, "state": trial.state.name.lower(), "best": trial.number in best}
        rows.append(row | tried | values | notes)
    return pd.DataFrame(rows)


def overrides_of(params: Mapping[str, Any]) -> list[str]:
    """Spells proposed values as they are typed on the command line, numbers with four digits."""
    return [f"{key}={_spelled(value)}" for key, value in params.items()]


def corners(space: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns settings that have every choice, and the lowest and highest number, of each key at least once."""
    values = {key: axis.get("choices") or [axis["low"], axis["high"]] for key, axis in space.items()}
    n_corners = max(map(len, values.values()), default=0)
    return [{key: of_key[number % len(of_key)] for key, of_key in values.items()} for number in range(n_corners)]


def _suggest(trial: Any, key: str, axis: Mapping[str, Any]) -> None:
    if "choices" in axis:
        trial.suggest_categorical(key, list(axis["choices"]))
        return
    low, high, log, step = axis["low"], axis["high"], bool(axis.get("log")), axis.get("step")
    if all(isinstance(value, int) for value in (low, high, step or 1)):
        trial.suggest_int(key, low, high, step=step or 1, log=log)
    else:
        trial.suggest_float(key, low, high, step=step, log=log)


def _spelled(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return f"{value:.{_DIGITS}g}" if isinstance(value, float) else str(value)
