"""Figures of a search: what its trials reached; data in, Figure out."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from src.analysis.figure_style import BLUE, GREY, VERMILLION, styled


@styled
def plot_history(trials: Sequence[int], values: Sequence[float], objective: str, maximize: bool) -> Figure:
    """Draws what each trial reached, and the best so far.

    Args:
        trials: numbers of the trials that ended with a value, in order.
        values: of the objective.
        objective: its name.
        maximize: whether more is better.
    """
    figure = Figure(figsize=(6.8, 3.7))
    axes = figure.add_subplot()
    best = np.maximum.accumulate(values) if maximize else np.minimum.accumulate(values)
    axes.step(trials, best, where="post", color=VERMILLION, label="best so far")
    axes.scatter(trials, values, color=BLUE, s=22, zorder=3, label="trials")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(x=0.05, y=0.1)
    axes.set(xlabel="Trial", ylabel=objective)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


@styled
def plot_pareto(
    x: Sequence[float], y: Sequence[float], is_best: Sequence[bool], trials: Sequence[int], names: tuple[str, str]
) -> Figure:
    """Draws two objectives of all trials against each other, those that no other trial beats in all objectives apart.

    Args:
        x: of each trial.
        y: of each trial.
        is_best: of each trial.
        trials: their numbers, written beside the best.
        names: of x and y, with the direction that is better.
    """
    figure = Figure(figsize=(6.8, 4.2))
    axes = figure.add_subplot()
    mask = np.asarray(is_best, dtype=bool)
    xs, ys = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    axes.scatter(xs[~mask], ys[~mask], color=GREY, s=22, label="other trials")
    front = np.flatnonzero(mask)[np.argsort(xs[mask], kind="stable")]
    axes.plot(xs[front], ys[front], color=VERMILLION, linewidth=1.2, zorder=2)
    axes.scatter(xs[front], ys[front], color=VERMILLION, s=30, zorder=3, label="not beaten in all objectives")
    for place, index in enumerate(front):
        beside = (4, 4) if place % 2 else (4, -12)  # neighbours in turn above and below
        axes.annotate(str(trials[index]), (xs[index], ys[index]), beside, textcoords="offset points", fontsize=9)
    for scale, values in ((axes.set_xscale, xs), (axes.set_yscale, ys)):
        if (values > 0).all() and values.max() > 10 * values.min():
            scale("log")
    axes.margins(x=0.08, y=0.1)
    axes.set(xlabel=names[0], ylabel=names[1])
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure
