"""How far each neuron's firing moved from the items that a study was fitted on to those of another cohort."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from src.analysis.figure_labels import spread
from src.analysis.figure_style import BLACK, GREY, SKY, VERMILLION, styled
from src.analysis.statistics import auroc_by_column
from src.ops.sparse_latents import SparseLatents
from src.progress import track


def firing_rates(pieces: Iterable[tuple[np.ndarray, SparseLatents]], n_items: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the share of each item's rows on which each neuron fires, and the share of all rows.

    Args:
        pieces: rows of the items, as `LatentSource.read` gives them.
        n_items: number of items.

    Returns:
        [n_items, n_latents] float32 and [n_latents] float64. Items without rows are NaN.
    """
    counts, n_rows = torch.zeros(0), np.zeros(n_items)
    for codes, latents in track(pieces, "Counting firings"):
        if not len(counts):
            counts = torch.zeros(n_items, latents.n_latents)
        n_rows += np.bincount(codes, minlength=n_items)
        fires = latents.values > 0
        places = torch.from_numpy(codes)[latents.row_ids[fires]] * latents.n_latents + latents.neuron_ids[fires]
        counts.view(-1).scatter_add_(0, places, torch.ones(len(places)))
    found = counts.numpy()
    total = found.sum(axis=0, dtype=np.float64) / max(n_rows.sum(), 1)
    found /= np.where(n_rows > 0, n_rows, np.nan)[:, None].astype(np.float32)
    return found, total


def compare_firing(
    study: tuple[np.ndarray, np.ndarray], cohort: tuple[np.ndarray, np.ndarray], neuron_ids: Iterable[int] = ()
) -> pd.DataFrame:
    """Compares the firing rates of a study's neurons on its own items and on a cohort's.

    Args:
        study: of `firing_rates`, on the items that the study was fitted on.
        cohort: the same on the cohort's items.
        neuron_ids: neurons that the study chose, the best first.

    Returns:
        A row a neuron: neuron_id, study_rate and cohort_rate (shares of all rows), log2_ratio (NaN where it is silent
        in both, infinite where in one), item_shift (the chance that an item of the cohort has a higher rate than one
        of the study, ties counting half; 0.5: not moved) and chosen (its place among the chosen ones from 1 on, else
        empty). Chosen ones first, then those that moved most by `item_shift`.
    """
    (study_items, study_rate), (cohort_items, cohort_rate) = study, cohort
    is_cohort = np.r_[np.zeros(len(study_items), bool), np.ones(len(cohort_items), bool)]
    items = np.concatenate([study_items, cohort_items])
    has_rows = ~np.isnan(items).any(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.log2(cohort_rate / study_rate)
    table = pd.DataFrame({"neuron_id": np.arange(len(study_rate)), "study_rate": study_rate})
    table = table.assign(cohort_rate=cohort_rate, log2_ratio=ratio)
    table["item_shift"] = auroc_by_column(items[has_rows], is_cohort[has_rows])
    places = {int(neuron_id): place for place, neuron_id in enumerate(neuron_ids, start=1)}
    table["chosen"] = [places.get(neuron_id, np.nan) for neuron_id in table["neuron_id"].tolist()]
    moved = (table["item_shift"] - 0.5).abs()
    order = table.assign(moved=-moved).sort_values(["chosen", "moved"], kind="stable", na_position="last")
    return order.drop(columns="moved").reset_index(drop=True)


def describe_shift(table: pd.DataFrame) -> dict[str, float]:
    """Returns what a table of `compare_firing` comes to.

    Returns:
        `n_silent` (neurons that fire in the study and never in the cohort), `n_new` (the other way round),
        `share_moved` (of those that fire in both, the share whose rate is more than twice or less than half), and of
        the best chosen neuron, where there is one, `study_rate`, `cohort_rate` and `item_shift`.
    """
    in_study, in_cohort = (table[key].to_numpy(float) > 0 for key in ("study_rate", "cohort_rate"))
    both = np.abs(table["log2_ratio"].to_numpy(float)[in_study & in_cohort])
    found = {"n_silent": float((in_study & ~in_cohort).sum()), "n_new": float((in_cohort & ~in_study).sum())}
    found["share_moved"] = float((both > 1).mean()) if len(both) else float("nan")
    best: Any = table[table["chosen"] == 1]
    if len(best):
        found |= {key: float(best.iloc[0][key]) for key in ("study_rate", "cohort_rate", "item_shift")}
    return found


@styled
def plot_firing_shift(table: pd.DataFrame) -> Figure:
    """Draws the rate in the cohort over the rate in the study, a point a neuron, the chosen ones named.

    Args:
        table: of `compare_firing`.
    """
    rates = table[["study_rate", "cohort_rate"]].to_numpy(float)
    positive = rates[rates > 0]
    figure = Figure(figsize=(5.8, 5.0))
    axes = figure.add_subplot()
    if not len(positive):
        axes.set_title("No neuron fires")
        return figure
    # Silent ones stand at the edge of a logarithmic scale.
    edge = positive.min() / 3
    shown = np.maximum(rates, edge)
    limits = edge / 1.5, max(1.0, positive.max()) * 1.3
    axes.plot(limits, limits, color=BLACK, linewidth=0.9)
    for factor in (0.5, 2):
        axes.plot(limits, np.multiply(limits, factor), color=GREY, linewidth=0.8, linestyle=":")
    is_chosen = table["chosen"].notna().to_numpy()
    axes.scatter(*shown[~is_chosen].T, s=10, color=SKY, alpha=0.5, linewidth=0)
    axes.scatter(*shown[is_chosen].T, s=36, color=VERMILLION, linewidth=0, zorder=3)
    # Names in a column on the right, with lines to their points, so that no two overlap.
    heights = np.log10(shown[is_chosen][:, 1])
    low, high = np.log10(limits)
    line = {"arrowstyle": "-", "color": GREY, "linewidth": 0.7, "shrinkA": 0, "shrinkB": 2}
    names = table.loc[is_chosen, "neuron_id"].astype(str)
    for point, name, height in zip(
        shown[is_chosen], names, spread(heights, 0.05 * (high - low), low, high), strict=True
    ):
        place = limits[1] * 1.15, 10**height
        axes.annotate(name, point, place, va="center", fontsize=10, color=VERMILLION, arrowprops=line)
    axes.set(xscale="log", yscale="log", xlim=limits, ylim=limits, aspect="equal")
    axes.set(xlabel="Share of rows, study", ylabel="Share of rows, this cohort")
    axes.set_title("Firing rates; dotted: twice and half; edge: silent", fontsize=11)
    return figure
