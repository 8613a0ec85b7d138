"""The figure of cases and their neurons."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.cluster.hierarchy import leaves_list, linkage

from src.analysis.figure_style import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILLION, styled

_COLORS = (BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY)
_MOST_NAMED = 60


@styled
def plot_case_heatmap(
    values: np.ndarray,
    case_ids: Sequence[str],
    labels: Sequence[str],
    neuron_ids: Sequence[int],
    neuron_labels: Sequence[str],
) -> Figure:
    """Draws how strongly neurons fire in cases; cases by label, and like ones beside each other within it.

    Each neuron is divided by its largest value over these cases. Within a label, cases are ordered by hierarchical
    clustering (average linkage of Euclidean distances, optimal leaf order: Bar-Joseph et al., Bioinformatics 17, 2001).

    Args:
        values: [n_cases, n_neurons], not negative.
        case_ids: [n_cases].
        labels: the label of each case.
        neuron_ids: [n_neurons].
        neuron_labels: the label that each neuron is a top neuron of; those of one label are drawn together.
    """
    classes = list(dict.fromkeys(sorted(labels)))
    largest = values.max(axis=0, initial=0)
    scaled = values / np.where(largest > 0, largest, 1)
    of_cases, of_neurons = np.array(labels), np.array(neuron_labels)
    rows = np.concatenate([_cluster(scaled, np.flatnonzero(of_cases == name)) for name in classes])
    columns = np.argsort([classes.index(name) for name in of_neurons], kind="stable")

    figure = Figure(figsize=(min(max(0.24 * len(columns) + 3, 6), 14), min(max(0.14 * len(rows) + 1.8, 3.6), 11)))
    left, axes = figure.subplots(1, 2, width_ratios=[0.35, 12], sharey=True)
    image = axes.imshow(scaled[rows][:, columns], aspect="auto", cmap="magma_r", vmin=0, vmax=1, interpolation="none")
    colors = {name: _COLORS[index % len(_COLORS)] for index, name in enumerate(classes)}
    _draw_bands(left, of_cases[rows], colors)
    for ends, draw in ((_ends(of_cases[rows]), axes.axhline), (_ends(of_neurons[columns]), axes.axvline)):
        for end in ends[:-1]:
            draw(end - 0.5, color="#222222", linewidth=1)
    ids = [str(neuron_ids[column]) for column in columns]
    if len(ids) <= _MOST_NAMED:
        axes.set_xticks(range(len(ids)), ids, rotation=90, fontsize=8)
        for tick, name in zip(axes.get_xticklabels(), of_neurons[columns], strict=True):
            tick.set_color(colors[name])
    else:
        axes.set_xticks([])
    left.set_xticks([])
    if len(rows) <= _MOST_NAMED:
        left.set_yticks(range(len(rows)), [case_ids[row] for row in rows], fontsize=7)
        left.tick_params(axis="y", length=0)
    else:
        left.set_yticks([])
    for one in (left, axes):
        one.grid(visible=False)
        one.spines[:].set_visible(False)
    axes.tick_params(axis="y", left=False, labelleft=False)
    axes.set_xlabel("Top neurons, coloured by the class they are ranked for")
    left.set_ylabel("Cases")
    figure.colorbar(image, ax=axes, label="Share of the neuron's maximum", pad=0.01)
    handles = [left.plot([], [], "s", color=color, label=name)[0] for name, color in colors.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=min(len(handles), 6))
    return figure


def _cluster(values: np.ndarray, members: np.ndarray) -> np.ndarray:
    """Returns rows with like ones beside each other."""
    if len(members) < 3:
        return members
    return members[leaves_list(linkage(values[members], "average", optimal_ordering=True))]


def _ends(names: np.ndarray) -> list[int]:
    """Returns where each run of equal names ends."""
    return [*(np.flatnonzero(names[1:] != names[:-1]) + 1).tolist(), len(names)]


def _draw_bands(axes: Axes, names: np.ndarray, colors: dict[str, str]) -> None:
    start = 0
    for end in _ends(names):
        axes.axhspan(start - 0.5, end - 0.5, color=colors[names[start]], linewidth=0)
        start = end
