"""The figure of all neurons: how often, how strongly, and for how many labels they fire."""

from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from src.analysis.figure_style import BLUE, styled


@styled
def plot_neurons(neurons: pd.DataFrame) -> Figure:
    """Draws every neuron that fires by the share of items it fires in and its mean where it is above 0.

    As PatchSAE shows its latents (H. Lim et al., arXiv 2412.05276, figure 3): coloured by label entropy, where there
    are labels, so that neurons of one class stand out.

    Args:
        neurons: of `tabulate_neurons`.
    """
    shown = neurons[neurons["n_items"] > 0]
    figure = Figure(figsize=(6.8, 4.4))
    axes = figure.add_subplot()
    look: Any = {"s": 12, "linewidth": 0, "alpha": 0.75}
    if "label_entropy" in shown:
        points = axes.scatter(
            shown["item_frequency"], shown["mean_active"], c=shown["label_entropy"], cmap="viridis", vmin=0, **look
        )
        figure.colorbar(points, ax=axes, label="Label entropy of its top items")
    else:
        axes.scatter(shown["item_frequency"], shown["mean_active"], color=BLUE, **look)
    scales = ((axes.xaxis, axes.set_xscale, "item_frequency"), (axes.yaxis, axes.set_yscale, "mean_active"))
    for axis, set_scale, name in scales:
        values: Any = shown[name]
        if values.max() > 3 * values.min():  # of less a logarithmic axis would have hardly a label
            set_scale("log")
            axis.set_major_formatter("{x:g}")  # 0.7 and not 7 x 10^-1
            axis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.4)))
    axes.set(xlabel="Share of items in which a neuron fires", ylabel="Mean where it is above 0")
    axes.set_title(f"{len(shown):,} of {len(neurons):,} neurons fire")
    return figure
