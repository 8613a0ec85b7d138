"""Trains many SAEs of a fold on one stream of activations, each as if it were trained alone."""

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import lightning
import pandas as pd

from src import config
from src.analysis.sae_figures import plot_frontier
from src.callbacks.slide_mixing import SlideMixing
from src.data.feeding.activations import ActivationDataModule
from src.data.streamed_fold import StreamedFold
from src.interrupts import keeping
from src.modules.sae_group import MemberError, SAEGroup, failing_as, of_member
from src.report.page import Page
from src.runs.execution import execute
from src.runs.rundir import RunDir
from src.tasks import train_sae
from src.tasks.streaming import open_stream
from src.tasks.trained_saes import Trained, TrainFold, columns_of
from src.training.checkpoints import Position, StepCheckpoints, newest_checkpoint
from src.training.loop_state import LoopState
from src.training.members import MemberCheckpoint, MemberCheckpointIO, MemberLogger
from src.training.trainer import make_loggers, make_trainer

_LOGGER = logging.getLogger(__name__)
_OWN_KEYS = ("task", "sweep.grid")
# What decides the stream of activations and how long it is; it must be the same for all.
_SHARED_KEYS = ("seed", "fold", "dataset", "backbone", "splits", "paths", "trainer")
_STREAM_KEYS = (*train_sae.DATA_KEYS, "checkpoints", "n_validations", "float32_matmul_precision")


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
    fold = open_shared_fold(first, [one.backbone for one in composed])
    train_sae.record_train_inputs(first, rundir, fold)
    data = train_sae.open_data(first, fold)
    begun: dict[int, tuple[Any, RunDir, TrainFold]] = {}
    outcomes: dict[int, dict[str, float] | Exception] = {}

    def begin(number: int) -> None:
        """Begins the runs from a number on, each inside the one before, and in the last one trains those that began."""
        if number == len(composed):
            outcomes.update(_train(rundir, data, begun))
            return

        def work(member_cfg: Any, member_dir: RunDir) -> dict[str, float]:
            train_sae.record_train_inputs(member_cfg, member_dir, fold)
            member_dir.write_fitted_on(fold.fitted("train"))
            begun[number] = (member_cfg, member_dir, _of_member(fold, member_cfg))
            begin(number + 1)
            if isinstance(outcome := outcomes[number], Exception):
                raise outcome
            return outcome

        try:
            outcomes[number] = execute(composed[number], members[number], work)
        except Exception as error:  # noted; the others go on
            outcomes[number] = error
        if number not in begun:
            begin(number + 1)

    with keeping(lambda: "what the SAEs had saved"):
        begin(0)
    in_order = [outcomes[number] for number in range(len(composed))]
    _raise_failures(in_order, combinations)
    _write_page(rundir, combinations, in_order)
    return {"n_runs": len(composed)}


def _train(
    rundir: RunDir, data: ActivationDataModule, runs: Mapping[int, tuple[Any, RunDir, TrainFold]]
) -> dict[int, dict[str, float] | Exception]:
    """Trains the SAEs of runs to their ends, and returns the results of each run or what ended it.

    Those that stand at one place are trained together; after a kill between their checkpoints there are two such
    groups, and each reads what is left for it. A member that fails is left out, and the others of its group go on
    from their last checkpoints.
    """
    outcomes: dict[int, dict[str, float] | Exception] = {}
    while waiting := sorted(runs.keys() - outcomes.keys()):
        starts = {number: newest_checkpoint(runs[number][1].checkpoints_dir) for number in waiting}
        steps = {number: start.step if start else 0 for number, start in starts.items()}
        group = [number for number in waiting if steps[number] == min(steps.values())]
        try:
            results = _train_group(rundir, data, [(*runs[number], starts[number]) for number in group])
            outcomes |= zip(group, results, strict=True)
        except MemberError as error:
            outcomes[group[error.member]] = error.__cause__  # pyright: ignore[reportArgumentType]
        except Exception as error:  # of what they share
            outcomes |= dict.fromkeys(waiting, error)
    return outcomes


def _train_group(
    rundir: RunDir,
    data: ActivationDataModule,
    runs: Sequence[tuple[Any, RunDir, TrainFold, Position | None]],
) -> list[dict[str, float]]:
    """Trains, exports and measures the SAEs of runs that stand at one place, and returns their results."""
    first = runs[0][0]
    arguments = train_sae.fit_arguments(first, data)
    modules, loggers, callbacks = [], [], [LoopState(), SlideMixing()]
    for number, (cfg, member_dir, fold, start) in enumerate(runs):
        lightning.seed_everything(cfg.seed, workers=True, verbose=False)  # as where it is trained alone
        with failing_as(number):
            modules.append(train_sae.build_module(cfg, fold, data, is_resumed=start is not None))
        callbacks += train_sae.best_and_last(partial(MemberCheckpoint, number), member_dir, fold, arguments)
        loggers += [MemberLogger(number, logger) for logger in make_loggers(cfg, member_dir)]
    folders = [member_dir.checkpoints_dir for _, member_dir, _, _ in runs]
    callbacks.append(StepCheckpoints(folders, data.checkpoint_steps))
    plugin = MemberCheckpointIO(folders, [start.path for *_, start in runs if start])
    trainer = make_trainer(first, rundir, callbacks, loggers, plugins=[plugin], **arguments)
    _LOGGER.info("Training %d SAEs on one stream.", len(runs))
    trained = [Trained(*run[:3], module.sae) for run, module in zip(runs, modules, strict=True)]
    group = SAEGroup(modules, [columns_of(one.fold) for one in trained])
    measured = train_sae.fit(trainer, group, data, trained, runs[0][3])
    return [
        train_sae.finish_training(cfg, member_dir, fold, data, sae, of_member(measured, number))
        for number, (cfg, member_dir, fold, sae) in enumerate(trained)
    ]


def open_shared_fold(cfg: Any, backbones: Sequence[Any]) -> TrainFold:
    """Opens what all members are trained on: on a stream, one backbone that gives all their layers in one pass.

    Args:
        cfg: of one member.
        backbones: the backbone nodes of all members.
    """
    layers = list(dict.fromkeys(node.get("layer") for node in backbones))
    if len(layers) < 2:
        return train_sae.open_train_fold(cfg)
    return open_stream(config.with_values(cfg, {"backbone": {"layer": layers}}))


def _of_member(fold: TrainFold, cfg: Any) -> TrainFold:
    if isinstance(fold, StreamedFold) and len(fold.embedder.backbone.chosen) > 1:
        return fold.of_layer(cfg.backbone.layer)
    return fold


def _write_page(rundir: RunDir, combinations: list[list[str]], outcomes: list[Any]) -> None:
    settings = [dict(override.split("=", 1) for override in combination) for combination in combinations]
    rows = [setting | results for setting, results in zip(settings, outcomes, strict=True)]
    table = pd.DataFrame(rows)
    rundir.add_table("sweep", table, "Settings and results of each SAE.", max_rows=50)
    if {"val/l0", "val/explained_variance"} <= set(table.columns):
        names = [", ".join(override.removeprefix("sae.") for override in combination) for combination in combinations]
        figure = plot_frontier(table["val/l0"].tolist(), table["val/explained_variance"].tolist(), names)
        rundir.add_figure("frontier", figure, "What each SAE reaches on validation data.")
    text = f"{len(rows)} SAEs, trained together on one stream of activations."
    rundir.write_page(Page("Sweep of sparse autoencoders", [text]))


def why_alone(cfg: Any) -> str:
    """Returns why an SAE cannot be trained together with others, empty when it can."""
    if cfg.trainer.devices != 1:
        return f"Expected trainer.devices=1 in a sweep on one stream, got {cfg.trainer.devices}."
    return ""


def stream_values(cfg: Any) -> dict[str, Any]:
    """Returns what decides the stream of activations and its length: SAEs where it is equal can share one."""
    return {f"train.{key}": cfg.train[key] for key in _STREAM_KEYS} | {key: _shared(cfg, key) for key in _SHARED_KEYS}


def _check(composed: list[Any], combinations: list[list[str]]) -> None:
    first = stream_values(composed[0])
    for one, combination in zip(composed, combinations, strict=True):
        if reason := why_alone(one):
            raise ValueError(reason)
        if changed := [key for key, value in stream_values(one).items() if value != first[key]]:
            raise ValueError(
                f"Expected combinations of sweep.grid that read the same activations in the same order, got other "
                f"{', '.join(changed)} for {', '.join(combination)}: use -m with task=train_sae for those."
            )


def _shared(cfg: Any, key: str) -> Any:
    """Returns what members share of a group: on a stream all but the layer, and the folder that it would have."""
    own = {"backbone": "layer", "dataset": "features_dir"}.get(key)
    if own is None or cfg.train.residency != "stream":
        return cfg[key]
    return {name: value for name, value in cfg[key].items() if name != own}


def _raise_failures(outcomes: list[dict[str, float] | Exception], combinations: list[list[str]]) -> None:
    named = zip(map(", ".join, combinations), outcomes, strict=True)
    failures = [(name, outcome) for name, outcome in named if isinstance(outcome, Exception)]
    if failures:
        listed = "\n  ".join(f"{name}: {type(error).__name__}: {error}" for name, error in failures)
        is_mistake = all(isinstance(error, ValueError | OSError) for _, error in failures)  # which prints no stack
        raise (ValueError if is_mistake else RuntimeError)(
            f"Expected all {len(outcomes)} runs of the sweep to end, got {len(failures)} that failed; the others are "
            f"done. Start again to go on with these:\n  {listed}"
        ) from failures[0][1]
