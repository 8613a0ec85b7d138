"""The figure of ranks over runs."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from src.analysis.figure_style import GREY, VERMILLION, styled


@styled
def plot_ranks(ranks: pd.DataFrame) -> Figure:
    """Draws where the best neurons of one run stand in the others.

    Args:
        ranks: of `ranks_elsewhere`: neuron_id (of the first run), run, rank, cosine; the best neuron is highlighted,
            and a neuron whose nearest one is far (cosine below 0.7) is drawn hollow there.
    """
    runs = list(dict.fromkeys(ranks["run"]))
    figure = Figure(figsize=(max(4.4, 1.1 * len(runs) + 2), 4.2))
    axes = figure.add_subplot()
    for number, (neuron_id, rows) in enumerate(ranks.groupby("neuron_id", sort=False)):
        x = np.array([runs.index(name) for name in rows["run"]])
        color, width = (VERMILLION, 2.4) if number == 0 else (GREY, 1.2)
        axes.plot(x, rows["rank"], color=color, linewidth=width, zorder=3 - min(number, 1))
        near = (rows["cosine"] >= 0.7).to_numpy()
        axes.scatter(x[near], rows["rank"][near], s=26, color=color, zorder=4)
        axes.scatter(x[~near], rows["rank"][~near], s=26, facecolor="white", edgecolor=color, zorder=4)
        axes.annotate(str(neuron_id), (x[0], rows["rank"].iloc[0]), (-8, 0), textcoords="offset points", ha="right",
                      va="center", fontsize=9, color=color)  # fmt: skip
    axes.set_yscale("log")
    axes.invert_yaxis()
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xticks(range(len(runs)), runs, rotation=0 if len(runs) < 7 else 30)
    axes.set_xlim(-0.6, len(runs) - 0.7)
    axes.set(ylabel="Rank of the nearest neuron")
    return figure
