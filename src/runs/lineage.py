"""Whether runs are up to date: made with these settings, from the data and the runs that are there now."""

import functools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from src import config
from src.data.current_inputs import CurrentInputs
from src.inputs import RUN, Input, compare_inputs, digest_inputs
from src.runs.identity import draws_of, folds_of, run_path
from src.runs.outputs import Output, changed_outputs
from src.runs.provenance import SCHEMA_VERSION
from src.runs.rundir import RunDir, run_input
from src.runs.stored_config import differences

_LOGGER = logging.getLogger(__name__)
_MOST_SHOWN = 5


class StaleRunError(ValueError):
    """A run was made from something that has changed since."""


@dataclass(frozen=True)
class Stale:
    """A run that is out of date, or missing although another run was made from it."""

    task: str
    fold: int | str | None
    path: Path
    reasons: tuple[str, ...]
    draw: str = ""
    """The repeat and the seed, as they are typed, where they are not those of the configuration."""

    @property
    def why(self) -> str:
        """The reasons as one text."""
        more = len(self.reasons) - _MOST_SHOWN
        return "; ".join(self.reasons[:_MOST_SHOWN]) + (f"; and {more} more" if more > 0 else "")


class Lineage:
    """The runs of one configuration, and what they were made from compared with what is there now.

    A run is up to date when its settings, what it read (`inputs.csv`), the results of the runs that it read, and its
    own results are what they were when it ended. A run that was named explicitly (`sae_run=`) stands for itself: its
    results are checked, what it was made from is not.

    Args:
        cfg: the resolved configuration.
        overrides: what the user typed.
    """

    def __init__(self, cfg: Any, overrides: Sequence[str]) -> None:
        self._cfg, self._tasks, self._overrides = cfg, config.tasks(), list(overrides)
        self._given = self._tasks.given(cfg)
        self._run_path = functools.cache(functools.partial(run_path, cfg))
        typed = [override for override in overrides if not override.startswith("task=")]
        self.command = " ".join(["python -m src.run", *typed])
        self._current: dict[int | str | None, CurrentInputs] = {}
        self._reasons: dict[Path, list[str]] = {}
        self._before: dict[tuple[str, int | str | None], dict[Path, Stale]] = {}

    def locate(self, task: str, fold: int | str | None = None) -> Path:
        """Returns the directory that the run of a task has or would have."""
        if task in self._given:
            return Path(self._given[task])
        return self._run_path(task, fold)

    def rundir(self, task: str) -> RunDir:
        """Returns the directory of a task's run under this configuration, where it is to be made."""
        return RunDir(self._run_path(task), self.locate, self.command, is_begun=False)

    def stale_ancestors(self, task: str) -> list[Stale]:
        """Returns the runs that are out of date among those that a task builds on, ancestors first."""
        return list(self._stale_before(task, None).values())

    def reasons(self, task: str, run: RunDir) -> list[str]:
        """Returns in words why a finished or begun run is out of date; nothing when it is not.

        Inputs that are gone are no reason: what was made from them is still true. A warning names them.
        """
        if run.path not in self._reasons:
            self._reasons[run.path] = list(self._find_reasons(task, run))
        return self._reasons[run.path]

    def refuse(self, stale: Stale, task: str) -> StaleRunError:
        """Returns the error of a task that builds on a run that is out of date, or of that run itself."""
        if stale.task in self._given and stale.path == self.locate(stale.task):
            return StaleRunError(
                f"Expected {self._tasks[stale.task].run_key}={stale.path} to be a finished run as its task left it, "
                f"got this: {stale.why}. Restore it, or name another run."
            )
        fold = f" fold={stale.fold}" if stale.fold not in (None, self._cfg.fold) else ""
        again = f"{self.command}{fold}{stale.draw} task={stale.task} overwrite=true"
        if stale.task == task:
            return StaleRunError(
                f"Expected the run {stale.path} to be made from what is there now, got one that is out of date: "
                f"{stale.why}. Make it again with overwrite=true; task=pipeline makes all again that is out of date. "
                + (
                    "For other data beside these give another dataset.name or folder."
                    if self._tasks[task].scope == "dataset"
                    else "For other data beside these give name=<name>."
                )
            )
        return StaleRunError(
            f"Expected {task} to build on runs that are up to date, got the {stale.task} run {stale.path}: "
            f"{stale.why}. Make it again: {again} (or task=pipeline, which makes all again that is out of date)."
        )

    def _stale_before(self, task: str, fold: int | str | None) -> dict[Path, Stale]:
        """Returns the runs that are out of date before a task, by directory; each task is looked at once."""
        if (task, fold) not in self._before:
            found: dict[Path, Stale] = {}
            for stale in (*self._walk(task, fold), *self._walk_draws(task)):
                found.setdefault(stale.path, stale)
            self._before[task, fold] = found
        return self._before[task, fold]

    def _walk(self, task: str, fold: int | str | None) -> Iterator[Stale]:
        for upstream in self._tasks.upstream(task):
            for run in self._runs(task, upstream, fold):
                if not run.is_finished:
                    continue
                if upstream not in self._given:
                    yield from self._stale_before(upstream, run.fold).values()
                    yield from self._missing(run)
                if reasons := self.reasons(upstream, run):
                    yield Stale(upstream, run.fold, run.path, tuple(reasons))

    def _walk_draws(self, task: str) -> Iterator[Stale]:
        """Yields the same of the other repeats and seeds that a task gathers."""
        if not self._tasks[task].gathers_draws:
            return
        per_fold = [one for one in self._tasks.upstream(task) if self._tasks[one].scope == "fold"]
        found = [draw for one in per_fold if one not in self._given for draw, _ in draws_of(self.locate(one))]
        own = (self._cfg.repeat, self._cfg.seed)
        for repeat, seed in sorted({(draw.repeat, draw.seed) for draw in found} - {own}):
            typed = [one for one in self._overrides if one.partition("=")[0] not in ("repeat", "seed", "task")]
            draw = f" repeat={repeat} seed={seed}"
            cfg = config.resolve(config.compose([*typed, *draw.split(), f"task={task}"]))
            for stale in Lineage(cfg, typed)._walk(task, None):
                yield replace(stale, draw=draw)

    def _runs(self, task: str, upstream: str, fold: int | str | None) -> Iterator[RunDir]:
        """Yields the upstream runs: of all folds where a task gathers folds, else of one."""
        path = self.locate(upstream, fold)
        gathers_folds = self._tasks[task].scope == "name" and self._tasks[upstream].scope == "fold"
        paths = [folder for _, folder in folds_of(path)] if gathers_folds and upstream not in self._given else [path]
        for path in paths:
            yield RunDir(path, self.locate, self.command, is_begun=False)

    def _missing(self, run: RunDir) -> Iterator[Stale]:
        """Yields the runs that a finished run was made from and that are not there any more."""
        for one in run.recorded():
            if one.what == RUN and not (upstream := self._upstream(run, one)).is_finished:
                task = one.name.partition(" ")[0]
                reason = f"it is not finished or not there, and {run.path} was made from it"
                yield Stale(task, upstream.fold, upstream.path, (reason,))

    def _find_reasons(self, task: str, run: RunDir) -> Iterator[str]:
        manifest = run.read_manifest() or {}
        if manifest.get("schema_version") != SCHEMA_VERSION:
            yield "it was made by another version of this program"
            return
        is_finished = manifest["status"] == "completed"
        if is_finished:
            yield from changed_outputs(run.path, [Output(**output) for output in manifest["outputs"]])
        if task in self._given and run.path == self.locate(task):
            return
        for difference in differences(run.config_path, self._cfg, task, run.fold):
            yield f"its settings differ: {difference}"
        if is_finished and digest_inputs(run.recorded()) != manifest["inputs"]:
            yield "its inputs.csv was changed after it had ended"
            return
        yield from self._changed_inputs(run)

    def _changed_inputs(self, run: RunDir) -> Iterator[str]:
        recorded = run.recorded()
        gone: list[str] = []
        for what in dict.fromkeys(one.what for one in recorded):
            before = [one for one in recorded if one.what == what]
            if what == RUN:
                now = [
                    run_input(upstream, one.name)
                    for one in before
                    if (upstream := self._upstream(run, one)).is_finished
                ]
                changed = [
                    f"the {one.name} run that it was made from is another one now" for one in _changed(before, now)
                ]
                yield from changed
                continue
            try:
                now = self._inputs_of(run.fold).read(what, recorded=before)
            except FileNotFoundError as error:
                gone.append(f"{what}: {error}")
                continue
            changed, missing = compare_inputs(before, now)
            gone += missing
            yield from changed
        if gone:
            shown = "; ".join(gone[:_MOST_SHOWN]) + (
                f"; and {len(gone) - _MOST_SHOWN} more" if gone[_MOST_SHOWN:] else ""
            )
            _LOGGER.warning(
                "Of what %s was made from, something is not there any more; it stays as it is. %s", run.path, shown
            )

    def _inputs_of(self, fold: int | str | None) -> CurrentInputs:
        return self._current.setdefault(fold, CurrentInputs(self._cfg, fold))

    def _upstream(self, run: RunDir, one: Input) -> RunDir:
        task, _, fold = one.name.partition(" fold ")
        return RunDir(self.locate(task, fold or run.fold))


def _changed(before: Sequence[Input], now: Sequence[Input]) -> list[Input]:
    digests = {one.key: one.digest for one in now}
    return [one for one in before if digests.get(one.key, one.digest) != one.digest]
