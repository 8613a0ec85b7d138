"""The figure of a confounder: which neurons tell the class, which the centre, and which both."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from src.analysis.figure_style import BLACK, BLUE, GREY, VERMILLION, styled
from src.analysis.stratified import stratified_auroc, usable_strata


def confounder_aurocs(values: np.ndarray, labels: np.ndarray, strata: Sequence[str]) -> np.ndarray:
    """Returns how well each neuron tells one stratum from the others among items of one class, [n_neurons].

    The AUROC of the stratum that it tells best, in either direction: from 0.5 (nothing) to 1.

    Args:
        values: [n_items, n_neurons].
        labels: [n_items] int.
        strata: of each item.

    Raises:
        ValueError: when no class occurs in two strata.
    """
    codes, _ = pd.factorize(np.asarray(strata, dtype=object))
    areas = []
    for code in np.unique(codes):
        is_stratum = codes == code
        both = [one for one in np.unique(labels) if len(np.unique(is_stratum[labels == one])) == 2]
        if both:
            usable, _ = usable_strata(is_stratum, labels, fewest=1)
            areas.append(np.abs(stratified_auroc(values, usable) - 0.5))
    if not areas:
        raise ValueError("Expected a class that occurs in several strata of selection.adjust_for, got none.")
    return 0.5 + np.max(areas, axis=0)


@styled
def plot_confounder(neurons: pd.DataFrame, confounder: str, q_limit: float = 0.05) -> Figure:
    """Draws how well each neuron tells the class within the confounder, against how well it tells the confounder.

    Args:
        neurons: of select_neurons with `selection.adjust_for`: neuron_id, auroc, confounder_auroc, q_value; best first.
        confounder: its name.
        q_limit: below which neurons are found.
    """
    shown = neurons.dropna(subset=["q_value"])
    found = (shown["q_value"] < q_limit).to_numpy()
    figure = Figure(figsize=(6.4, 4.6))
    axes = figure.add_subplot()
    for rows, color, label in ((~found, GREY, "not significant"), (found, VERMILLION, f"q < {q_limit:g}")):
        axes.scatter(
            shown["confounder_auroc"][rows],
            shown["auroc"][rows],
            s=16,
            color=color,
            alpha=0.7,
            linewidth=0,
            label=label,
        )
    best = shown.iloc[0]
    axes.scatter(best["confounder_auroc"], best["auroc"], s=80, facecolor="none", edgecolor=BLUE, linewidth=1.8)
    axes.annotate(
        f"best: {int(best['neuron_id'])}",
        (best["confounder_auroc"], best["auroc"]),
        (8, -4),
        textcoords="offset points",
        color=BLUE,
    )
    axes.axhline(0.5, color=BLACK, linewidth=0.9, linestyle=":")
    axes.set(xlim=(0.49, 1.01), ylim=(-0.02, 1.04))
    axes.set(
        xlabel=f"AUROC for {confounder}, among items of one class", ylabel=f"AUROC for the class, within {confounder}"
    )
    axes.legend(loc="lower left", markerscale=1.5)
    return figure
