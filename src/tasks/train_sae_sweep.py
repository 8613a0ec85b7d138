"""Trains many SAEs of a fold on one stream of activations, each as if it were trained alone."""

import logging
from functools import partial
from typing import Any

import lightning
import pandas as pd

from src import config
from src.analysis.figures import save_figure
from src.analysis.sae_figures import plot_frontier
from src.callbacks.slide_mixing import SlideMixing
from src.data.feeding.activations import ActivationDataModule
from src.files import write_atomically
from src.interrupts import keeping
from src.modules.sae_group import MemberError, SAEGroup, failing_as, of_member
from src.report.page import Page, PageFigure, PageTable
from src.runs.execution import execute
from src.runs.rundir import RunDir
from src.tasks.train_sae import (
    TrainFold,
    begin_training,
    best_and_last,
    build_module,
    export,
    finish_training,
    fit_arguments,
    open_data,
    open_train_fold,
    record_train_inputs,
)
from src.training.checkpoints import Position, StepCheckpoints, newest_checkpoint
from src.training.loop_state import LoopState
from src.training.members import MemberCheckpoint, MemberCheckpointIO, MemberLoggers
from src.training.trainer import make_loggers, make_trainer

_LOGGER = logging.getLogger(__name__)
_PAGE_ORDER = 45
_OWN_KEYS = ("task", "sweep.grid")
# What decides the stream of activations and how long it is; it must be the same for all.
_STREAM_KEYS = (
    *("batch_size", "block_size", "batch_unit", "n_tokens", "residency", "n_workers"),
    *("epochs", "total_rows", "checkpoints", "n_validations", "float32_matmul_precision"),
)


def run(cfg: Any, rundir: RunDir) -> dict[str, float]:
    """Runs `train_sae` for every combination of `cfg.sweep.grid` together, in one process.

    Each has the run directory, the checkpoints and the results that `task=train_sae` with the same overrides would
    have, bit for bit on the CPU; finished ones are left as they are, unfinished ones resume. The activations are read
    once for all.

    Returns:
        The number of runs.

    Raises:
        ValueError: when the grid is empty, or changes what the stream of activations is made of.
        ValueError, RuntimeError: when a run failed, after the others have ended.
    """
    typed = [override for override in config.hydra_overrides() if override.partition("=")[0] not in _OWN_KEYS]
    combinations = config.expand_grid(cfg.sweep.grid)
    if combinations == [[]]:
        raise ValueError("Expected combinations to train in sweep.grid, got none: give e.g. sweep.grid=[sae.k=8,16].")
    members = [[*typed, *combination, "task=train_sae"] for combination in combinations]
    composed = [config.compose(overrides) for overrides in members]
    _check(composed, combinations)

    first, *_ = [config.resolve(one) for one in composed]  # all, so that no mistake waits for the others to be trained
    fold = open_train_fold(first)
    record_train_inputs(first, rundir, fold)
    sweep = _Sweep(rundir, fold, open_data(first, fold))

    def begin(number: int) -> None:
        """Begins the runs from a number on, each inside the one before, and in the last one trains those that began."""
        if number == len(composed):
            sweep.train()
            return
        is_begun = False

        def work(member_cfg: Any, member_dir: RunDir) -> dict[str, float]:
            nonlocal is_begun
            begin_training(member_cfg, member_dir, fold)
            sweep.members[number] = (member_cfg, member_dir)
            is_begun = True
            begin(number + 1)
            return sweep.results(number)

        try:
            sweep.outcomes[number] = execute(composed[number], members[number], work)
        except Exception as error:  # noted; the others go on
            sweep.outcomes[number] = error
        if not is_begun:
            begin(number + 1)

    with keeping(lambda: "what the SAEs had saved"):
        begin(0)
    outcomes = [sweep.outcomes[number] for number in range(len(composed))]
    _raise_failures(outcomes, combinations)
    _write_page(rundir, combinations, outcomes)
    return {"n_runs": len(outcomes)}


class _Sweep:
    """The runs of a sweep that have begun, by their number, and what became of them.

    Args:
        rundir: the sweep's own directory.
        fold: what all train on.
        data: its activations.
    """

    def __init__(self, rundir: RunDir, fold: TrainFold, data: ActivationDataModule) -> None:
        self.members: dict[int, tuple[Any, RunDir]] = {}
        self.outcomes: dict[int, dict[str, float] | Exception] = {}
        self._rundir, self._fold, self._data = rundir, fold, data

    def results(self, number: int) -> dict[str, float]:
        """Returns the results of a member.

        Raises:
            Exception: that ended it.
        """
        outcome = self.outcomes[number]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def train(self) -> None:
        """Trains all members to their ends.

        Those that stand at one place are trained together; after a kill between their checkpoints there are two such
        groups, and each reads what is left for it. A member that fails is left out, and the others of its group go on
        from their last checkpoints.
        """
        waiting = set(self.members)
        while waiting:
            starts = {number: newest_checkpoint(self.members[number][1].checkpoints_dir) for number in waiting}
            steps = {number: start.step if start else 0 for number, start in starts.items()}
            group = sorted(number for number in waiting if steps[number] == min(steps.values()))
            try:
                self._train_group(group, [starts[number] for number in group])
                waiting -= set(group)
            except MemberError as error:
                self.outcomes[group[error.member]] = error.__cause__  # pyright: ignore[reportArgumentType]
                waiting.remove(group[error.member])
            except Exception as error:  # of what they share
                self.outcomes |= dict.fromkeys(waiting, error)
                return

    def _train_group(self, group: list[int], starts: list[Position | None]) -> None:
        """Trains members that stand at one place, exports and measures them."""
        fold, data = self._fold, self._data
        modules, runs = [], [self.members[number] for number in group]
        for number, (cfg, _) in enumerate(runs):
            lightning.seed_everything(cfg.seed, workers=True, verbose=False)  # as where it is trained alone
            with failing_as(number):
                modules.append(build_module(cfg, fold, data, is_resumed=starts[number] is not None))
        arguments = fit_arguments(runs[0][0], data)
        callbacks = [LoopState(), SlideMixing()]
        for number, (_, rundir) in enumerate(runs):
            callbacks += best_and_last(partial(MemberCheckpoint, number), rundir, fold, arguments)
        folders = [rundir.checkpoints_dir for _, rundir in runs]
        resumed = [start.path for start in starts if start]
        trainer = make_trainer(
            runs[0][0],
            self._rundir,
            [*callbacks, StepCheckpoints(folders, data.checkpoint_steps)],
            [MemberLoggers([make_loggers(*run) for run in runs])],
            plugins=[MemberCheckpointIO(folders, resumed)],
            **arguments,
        )
        _LOGGER.info("Training %d SAEs on one stream.", len(group))
        module = SAEGroup(modules)
        trainer.fit(module, data, ckpt_path=resumed[0] if resumed else None)
        if trainer.interrupted:
            raise KeyboardInterrupt("Training was interrupted; start again to resume it.")
        trained = [(cfg, rundir, one.sae) for (cfg, rundir), one in zip(runs, modules, strict=True)]
        export(fold, data, trained)
        (measured,) = trainer.validate(module, data, verbose=False) if fold.split.val else ({},)
        for number, (cfg, rundir, sae) in enumerate(trained):
            results = finish_training(cfg, rundir, fold, data, sae, of_member(dict(measured), number))
            self.outcomes[group[number]] = results


def _write_page(rundir: RunDir, combinations: list[list[str]], outcomes: list[Any]) -> None:
    rows = [
        {override.partition("=")[0]: override.partition("=")[2] for override in combination} | results
        for combination, results in zip(combinations, outcomes, strict=True)
    ]
    table = pd.DataFrame(rows)
    with write_atomically(rundir.table("sweep")) as temporary:
        table.to_csv(temporary, index=False)
    figures = []
    if {"val/l0", "val/explained_variance"} <= set(table.columns):
        names = [", ".join(override.removeprefix("sae.") for override in combination) for combination in combinations]
        l0, explained_variance = table["val/l0"].tolist(), table["val/explained_variance"].tolist()
        save_figure(plot_frontier(l0, explained_variance, names), rundir.plot("frontier"))
        figures.append(PageFigure(rundir.plot("frontier"), "What each SAE reaches on validation slides."))
    rundir.write_page(
        Page(
            title="Sweep of sparse autoencoders",
            order=_PAGE_ORDER,
            paragraphs=[f"{len(rows)} SAEs, trained together on one stream of activations."],
            figures=figures,
            tables=[PageTable(rundir.table("sweep"), "Settings and results of each SAE.", max_rows=50)],
        )
    )


def _check(composed: list[Any], combinations: list[list[str]]) -> None:
    for one, combination in zip(composed, combinations, strict=True):
        if one.trainer.devices != 1:
            raise ValueError(f"Expected trainer.devices=1 in a sweep on one stream, got {one.trainer.devices}.")
        if "wandb" in one.logger:
            raise ValueError(
                "Expected logger=csv or logger=tensorboard in a sweep on one stream, got wandb, which logs one run a "
                "process: use -m with task=train_sae instead."
            )
        changed = [f"train.{key}" for key in _STREAM_KEYS if one.train[key] != composed[0].train[key]]
        for key in ("seed", "fold", "dataset", "backbone", "splits", "paths", "trainer"):
            if one[key] != composed[0][key]:
                changed.append(key)
        if changed:
            raise ValueError(
                f"Expected combinations of sweep.grid that read the same activations in the same order, got other "
                f"{', '.join(changed)} for {', '.join(combination)}: use -m with task=train_sae for those."
            )


def _raise_failures(outcomes: list[dict[str, float] | Exception], combinations: list[list[str]]) -> None:
    failures = [
        (", ".join(combination), outcome)
        for combination, outcome in zip(combinations, outcomes, strict=True)
        if isinstance(outcome, Exception)
    ]
    if failures:
        listed = "\n  ".join(f"{name}: {type(error).__name__}: {error}" for name, error in failures)
        is_mistake = all(isinstance(error, ValueError | OSError) for _, error in failures)  # which prints no stack
        raise (ValueError if is_mistake else RuntimeError)(
            f"Expected all {len(outcomes)} runs of the sweep to end, got {len(failures)} that failed; the others are "
            f"done. Start again to go on with these:\n  {listed}"
        ) from failures[0][1]
