"""Compares the neurons that several runs selected, each with an SAE of its own: over folds, seeds and repeats."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from src.analysis.rank_figure import plot_ranks
from src.analysis.selection import best_neuron_ids
from src.analysis.stability import compare_selections, ranks_elsewhere
from src.inputs import RUN, file_input
from src.report.page import Page
from src.runs.rundir import RunDir
from src.stores.sae import load_sae

_LOGGER = logging.getLogger(__name__)


def inputs(cfg: Any, rundir: RunDir) -> list[Path]:
    """Returns the files that a comparison made now would read."""
    return [run.table("neurons") for run in _runs(cfg, rundir).values()]


def run(cfg: Any, rundir: RunDir) -> dict[str, float]:
    """Writes `analysis/selections.csv`, a row a pair of runs, and `analysis/ranks.csv`; draws the ranks.

    The runs are the finished folds of select_neurons, and those of `comparison.runs` (other seeds, other SAEs).

    Returns:
        The mean overlap of the best neurons, and the mean cosine of the best neuron's atom and its nearest elsewhere.

    Raises:
        FileNotFoundError: when there are fewer than two runs.
    """
    runs = _runs(cfg, rundir)
    if len(runs) < 2:
        raise FileNotFoundError(
            f"Expected at least two finished runs of select_neurons, found {len(runs)}: run other folds, or give "
            "comparison.runs=[<run>,...]."
        )
    n_top = cfg.comparison.n_top
    tables = {name: pd.read_csv(one.table("neurons")) for name, one in runs.items()}
    rankings = {name: best_neuron_ids(table, len(set(table["neuron_id"]))) for name, table in tables.items()}
    atoms = {name: load_sae(_sae_of(one).export_dir).atoms.detach().numpy() for name, one in runs.items()}
    pairs = compare_selections(rankings, atoms, n_top)
    caption = (
        f"overlap: share of the {n_top} best neurons of one run whose nearest neuron in the other, by the cosine of "
        "their atoms, is among that run's best; best_rank: where the first run's best neuron stands in the second."
    )
    rundir.add_table("selections", pairs, caption, 20)
    ranks = ranks_elsewhere(rankings, atoms, n_top)
    ranks.to_csv(rundir.table("ranks"), index=False)
    first = next(iter(runs))
    rundir.add_figure("ranks", plot_ranks(ranks), f"Ranks of the nearest neurons of the {n_top} best of {first}.")
    results = {
        "n_runs": float(len(runs)),
        "mean_overlap": float(np.mean(pairs["overlap"])),
        "mean_best_cosine": float(np.mean(pairs["best_cosine"])),
    }
    text = f"{len(runs)} selections: {', '.join(runs)}. Neurons of different SAEs are matched by their atoms."
    rundir.write_page(Page("How stable the selected neurons are", [text], results))
    return results


def _runs(cfg: Any, rundir: RunDir) -> dict[str, RunDir]:
    runs = {f"fold {fold}": one for fold, one in rundir.upstream_folds("select_neurons").items()}
    known = {one.path.resolve() for one in runs.values()}
    for path in cfg.comparison.runs:
        given = RunDir(Path(path))
        if not given.is_finished:
            raise FileNotFoundError(f"Expected a finished run of select_neurons at {path}, found none.")
        if given.path.resolve() not in known:
            rundir.record(file_input("file", given.table("neurons")))
            runs["/".join(given.path.parts[-4:-1])] = given  # name, variant, fold
    return runs


def _sae_of(ranking: RunDir) -> RunDir:
    """Returns the run that trained the SAE of a ranking: what its latents were encoded with."""
    encoded = _upstream(ranking, "encode")
    return _upstream(encoded, "train_sae")


def _upstream(run: RunDir, task: str) -> RunDir:
    found = [one.path for one in run.recorded() if one.what == RUN and one.name.split()[0] == task]
    if not found:
        raise FileNotFoundError(f"Expected {run.path} to have read a run of {task}, found none in its inputs.csv.")
    return RunDir(Path(found[0]))
