"""Figures of steering: recall over the number of neurons, effects by class, on other classes, and by strength."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from src.analysis.figure_style import BLACK, BLUE, GREY, ORANGE, SKY, VERMILLION, styled
from src.analysis.steering_metrics import RECALL, TARGET_SHARE
from src.analysis.steering_trials import KEEP, RECONSTRUCT, REMOVE, UNION

_COLORS = {KEEP: BLUE, REMOVE: VERMILLION, "own": BLUE, UNION: ORANGE}
_TITLES = {KEEP: "Only these neurons kept", REMOVE: "These neurons removed"}
_CLASS_HEIGHT = 0.3


@styled
def plot_sizes(by_size: pd.DataFrame, reconstruct: float, no_sae: float) -> Figure:
    """Draws mean recall over the number of neurons, with the band of random sets.

    Args:
        by_size: of `effects_by_size`.
        reconstruct: mean recall on unedited latents.
        no_sae: mean recall without the SAE.
    """
    figure = Figure(figsize=(9.6, 3.9))
    panels = figure.subplots(1, 2, sharey=True)
    sizes = sorted(by_size["k"].unique())
    places = {k: place for place, k in enumerate(sizes)}
    for axes, action in zip(panels, (KEEP, REMOVE), strict=True):
        axes.axhline(no_sae, color=BLACK, linewidth=1, linestyle=":", label="Model without SAE")
        axes.axhline(reconstruct, color=GREY, linewidth=1, linestyle="--", label="Latents as they are")
        for target, dash, label in (("own", "-", "Neurons of the own class"), (UNION, "--", "Of all classes together")):
            rows: Any = by_size[(by_size["action"] == action) & (by_size["target"] == target)]
            x = rows["k"].map(places)
            if rows["low"].notna().any():
                band = {"color": GREY, "alpha": 0.35, "linewidth": 0, "label": "Random sets, 95 %"}
                axes.fill_between(x, rows["low"], rows["high"], **band)
            if len(rows):
                axes.plot(x, rows[RECALL], dash, color=_COLORS[target], marker="o", markersize=4, label=label)
        axes.set_xticks(range(len(sizes)), [f"{k:,}" for k in sizes], rotation=45)
        axes.set(title=_TITLES[action], xlabel="Neurons of a class", ylim=(-0.02, 1.02))
        axes.yaxis.set_major_formatter(PercentFormatter(1))
    panels[0].set_ylabel("Recall, mean over classes")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


@styled
def plot_effects(effects: pd.DataFrame, k: int) -> Figure:
    """Draws each class's recall when k neurons are kept or removed, beside the middle 95 % of random sets.

    Args:
        effects: of `summarize_effects`.
        k: the number of neurons.
    """
    figure = Figure(figsize=(9.6, 1.6 + _CLASS_HEIGHT * len(effects)))
    panels = figure.subplots(1, 2, sharey=True)
    y = np.arange(len(effects))
    for axes, action in zip(panels, (KEEP, REMOVE), strict=True):
        low, high = effects[f"{action}_low"], effects[f"{action}_high"]
        axes.hlines(y, low, high, color=GREY, linewidth=6, alpha=0.5, label="Random sets, 95 %")
        axes.plot(effects[RECONSTRUCT], y, "|", color=BLACK, markersize=11, label="Latents as they are")
        axes.plot(effects[action], y, "o", color=_COLORS[action], markersize=6, label=_TITLES[action])
        axes.set_yticks(y, effects["class"])
        axes.set(title=f"{_TITLES[action]}, k = {k:,}", xlabel="Recall", xlim=(-0.03, 1.03))
        axes.xaxis.set_major_formatter(PercentFormatter(1))
    panels[0].invert_yaxis()
    handles, labels = panels[0].get_legend_handles_labels()
    extra = panels[1].get_legend_handles_labels()
    figure.legend([*handles, extra[0][-1]], [*labels, extra[1][-1]], loc="outside lower center", ncols=4)
    return figure


@styled
def plot_side_effects(table: pd.DataFrame, k: int) -> Figure:
    """Draws how k neurons of each class (rows) change the recall of every class (columns).

    Args:
        table: of `describe_outcomes`.
        k: the number of neurons.
    """
    recall: Any = table[(table["metric"] == RECALL) & (table["draw"] < 0)]
    plain = recall[recall["action"] == RECONSTRUCT].set_index("class")["value"]
    n = len(plain)
    side = max(3.2, 1.4 + 0.34 * n)
    figure = Figure(figsize=(2 * side + 0.8, side + 0.6))
    panels = figure.subplots(1, 2, sharey=True)
    drawn = None
    for axes, action in zip(panels, (KEEP, REMOVE), strict=True):
        rows = recall[(recall["action"] == action) & (recall["k"] == k) & (recall["target"] != UNION)]
        matrix = rows.pivot(index="target", columns="class", values="value").loc[plain.index, plain.index] - plain
        drawn = axes.imshow(matrix.to_numpy(), cmap="RdBu_r", vmin=-1, vmax=1)
        axes.set_xticks(range(n), plain.index, rotation=90)
        axes.set_yticks(range(n), plain.index)
        axes.grid(visible=False)
        axes.set(title=f"{_TITLES[action]}, k = {k:,}", xlabel="Class of the images")
    panels[0].set_ylabel("Class whose neurons")
    bar = figure.colorbar(drawn, ax=panels, shrink=0.8, label="Change of recall")  # pyright: ignore[reportArgumentType]
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1))
    return figure


@styled
def plot_doses(table: pd.DataFrame) -> Figure:
    """Draws the share of items predicted as a class over the strength of the edit of its neurons.

    Args:
        table: of `describe_outcomes`, with edits `scale`, `set` or `add`.
    """
    rows: Any = table[(table["metric"] == TARGET_SHARE) & table["strength"].notna()]
    actions = list(dict.fromkeys(rows["action"]))
    figure = Figure(figsize=(1.2 + 4.2 * len(actions), 3.9))
    panels = figure.subplots(1, len(actions), sharey=True, squeeze=False)[0]
    words = {"scale": "Latents times", "set": "Latents set to", "add": "Added to latents"}
    for axes, action in zip(panels, actions, strict=True):
        of_action = rows[rows["action"] == action]
        is_own = of_action["class"] == of_action["target"]
        for name, color, part in (("of the class", BLUE, is_own), ("of other classes", SKY, ~is_own)):
            if not part.any():
                continue  # side effects were not asked for
            by_target = of_action[part].groupby(["strength", "target"])["value"].mean().unstack()
            for target in by_target:
                axes.plot(by_target.index, by_target[target], color=color, linewidth=0.6, alpha=0.5)
            mean = by_target.mean(axis=1)
            axes.plot(mean.index, mean, color=color, marker="o", markersize=4, label=f"Items {name}, mean")
        unit = "" if action == "scale" else ", in train means"
        axes.set(xlabel=f"{words[action]}{unit}", ylim=(-0.02, 1.02))
        axes.yaxis.set_major_formatter(PercentFormatter(1))
    panels[0].set_ylabel("Predicted as the class")
    panels[0].legend(loc="best")
    return figure
