"""The picture of a confusion matrix."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from src.analysis.figure_style import styled

_MOST_NUMBERS = 30


@styled
def plot_confusion(counts: pd.DataFrame, title: str = "") -> Figure:
    """Draws a confusion matrix: the shade is the share of a row, the number the count.

    Args:
        counts: of `src.analysis.probe_metrics.count_confusions`: a row a class, and a column a predicted class or an
            outcome of a label. Numbers are left out of large ones.
        title: above it.
    """
    values = counts.to_numpy(float)
    shares = values / np.maximum(values.sum(1, keepdims=True), 1)
    n_rows, n_columns = values.shape
    side = 0.55 if max(values.shape) <= _MOST_NUMBERS else 0.2
    names = max((len(str(name)) for name in [*counts.index, *counts.columns]), default=0)
    figure = Figure(figsize=(max(4.8, 2.4 + 0.09 * names + side * n_columns), 1.6 + 0.09 * names + side * n_rows))
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(n_columns), [str(name) for name in counts.columns], rotation=45, ha="right")
    axes.set_yticks(range(n_rows), [str(name) for name in counts.index])
    labels = ("Predicted", "True class") if list(counts.columns) == list(counts.index) else ("Outcome", "Label")
    axes.set(xlabel=labels[0], ylabel=labels[1])
    figure.suptitle(title, fontsize=12)
    axes.grid(visible=False)
    if max(values.shape) <= _MOST_NUMBERS:
        for (row, column), count in np.ndenumerate(values):
            color = "white" if shares[row, column] > 0.6 else "#222222"
            axes.text(column, row, f"{count:.0f}", ha="center", va="center", color=color, fontsize=9)
    figure.colorbar(image, ax=axes, label="Share of the row", shrink=0.8)
    return figure
