"""Trains many SAEs of a fold on one stream of activations, each as if it were trained alone."""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import pandas as pd

from src import config
from src.analysis.figures import save_figure
from src.analysis.sae_figures import plot_frontier
from src.data.feeding.shared_blocks import SharedBlocks
from src.files import write_atomically
from src.interrupts import keeping
from src.lockstep import Lockstep
from src.report.page import Page, PageFigure, PageTable
from src.runs.execution import execute
from src.runs.rundir import RunDir
from src.tasks.train_sae import open_data, open_train_fold, record_train_inputs, train_fold

_LOGGER = logging.getLogger(__name__)
_PAGE_ORDER = 45
_OWN_KEYS = ("task", "sweep.grid")
# What decides the stream of activations; it must be the same for all.
_STREAM_KEYS = ("batch_size", "block_size", "batch_unit", "n_tokens", "residency", "n_workers")


def run(cfg: Any, rundir: RunDir) -> dict[str, float]:
    """Runs `train_sae` for every combination of `cfg.sweep.grid`, side by side in this process.

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
    stream = open_data(first, fold)
    lockstep = Lockstep()
    shared = SharedBlocks(stream.read_blocks, lockstep.take_turn)

    def train_member(member_cfg: Any, member_dir: RunDir) -> dict[str, float]:
        data = open_data(member_cfg, fold)
        data.share(stream, shared)
        record_train_inputs(member_cfg, member_dir, fold)
        return train_fold(member_cfg, member_dir, fold, data)

    jobs: list[Callable[[], dict[str, float]]] = [
        partial(execute, one, overrides, train_member) for one, overrides in zip(composed, members, strict=True)
    ]
    _LOGGER.info("Training %d SAEs on one stream.", len(jobs))
    try:
        with keeping(lambda: "what the other SAEs had saved"):
            outcomes = lockstep.run(jobs)
    finally:
        shared.close()
        stream.teardown("fit")
    _raise_failures(outcomes, combinations)
    _write_page(rundir, combinations, outcomes)
    _LOGGER.info("Read %d blocks of activations for %d SAEs.", shared.n_read, len(outcomes))
    return {"n_runs": len(outcomes)}


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
            paragraphs=[f"{len(rows)} SAEs, trained side by side on one stream of activations."],
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
        for key in ("seed", "fold", "dataset", "backbone", "splits", "paths"):
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
