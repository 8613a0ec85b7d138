"""Figures of training, selection and evaluation: data in, Figure out."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator
from sklearn.metrics import roc_auc_score, roc_curve

from src.analysis.figure_labels import spread
from src.analysis.figure_style import BLACK, BLUE, GREY, ORANGE, SKY, VERMILLION, styled
from src.analysis.methods import Method
from src.wording import SLIDES, Words

_SUMMARY_COLUMNS = 2
_CURVE_PANELS = {
    "explained_variance": "Explained variance",
    "l0": "Active latents (L0)",
    "dead_fraction": "Dead latents (fraction)",
    "loss": "Loss",
}


@styled
def plot_training_curves(table: pd.DataFrame) -> Figure:
    """Draws how an SAE's explained variance, L0, dead fraction and loss went over the steps.

    Args:
        table: column `step`, and columns `<stage>/<name>` such as `train/loss` or `val/l0`; empty cells are left out.

    Raises:
        ValueError: none of the four is a column.
    """
    filled = table.dropna(axis="columns", how="all").columns
    panels = {name: [column for column in filled if column.split("/")[-1] == name] for name in _CURVE_PANELS}
    panels = {name: columns for name, columns in panels.items() if columns}
    if not panels or "step" not in table:
        known = ", ".join(_CURVE_PANELS)
        raise ValueError(f"Expected a column step and at least one of <stage>/{{{known}}}, got {list(table.columns)}.")
    n_columns = min(2, len(panels))
    n_rows = -(-len(panels) // n_columns)
    figure = Figure(figsize=(4.6 * n_columns, 2.9 * n_rows))
    for index, (name, columns) in enumerate(panels.items()):
        axes = figure.add_subplot(n_rows, n_columns, index + 1)
        for column in columns:
            points = table[["step", column]].dropna()
            stage = column.split("/")[0]
            is_train = stage == "train"
            marker = "" if is_train or len(points) > 60 else "o"
            look: Any = {"color": SKY, "zorder": 2} if is_train else {"color": VERMILLION, "zorder": 3}
            axes.plot(points["step"], points[column], marker=marker, markersize=4, label=stage, **look)
        axes.set(title=_CURVE_PANELS[name], xlabel="Optimizer step")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_xlim(left=0)
        if name == "loss" and _spans_decades(table[columns].to_numpy()):
            axes.set_yscale("log")
        if name == "dead_fraction":
            axes.set_ylim(bottom=0)
        if len(columns) > 1:
            axes.legend()
    return figure


@styled
def plot_volcano(neurons: pd.DataFrame, n_labels: int = 8, q_limit: float = 0.05, words: Words = SLIDES) -> Figure:
    """Draws the effect of every neuron against the evidence for it, the best ones with their ids.

    Args:
        neurons: as select_neurons ranks them, best first: `neuron_id`, `effect_size`, `q_value`, and `class` when one
            class was compared with the rest.
        n_labels: how many of the best carry their id.
        q_limit: the false discovery rate at which the line is drawn.
        words: what items are called.
    """
    shown = neurons.dropna(subset=["effect_size", "q_value"])
    # A q-value that underflowed to 0 is drawn at the smallest positive double: higher than all others, still finite.
    height = -np.log10(np.maximum(shown["q_value"].to_numpy(float), np.finfo(float).tiny))
    effect = shown["effect_size"].to_numpy(float)
    found = (shown["q_value"].to_numpy(float) < q_limit) & (effect > 0)
    figure = Figure(figsize=(7.2, 4.6))
    axes = figure.add_subplot()
    axes.scatter(effect[~found], height[~found], s=14, color=GREY, alpha=0.6, linewidth=0, label="not significant")
    axes.scatter(effect[found], height[found], s=20, color=VERMILLION, alpha=0.8, linewidth=0, label=f"q < {q_limit:g}")
    axes.axhline(-np.log10(q_limit), color=BLACK, linewidth=0.9, linestyle=":")
    axes.set(xlabel=f"Effect size, positive against other {words.items}", ylabel="−log10 q")
    axes.set_ylim(0, max(1.05 * height.max(initial=0), -1.6 * np.log10(q_limit)))
    axes.legend(loc="upper left", markerscale=2)
    axes.set_title(f"{found.sum()} of {len(shown)} neurons found; {len(neurons) - len(shown)} could not be tested")
    best = np.flatnonzero(found)[:n_labels]
    names = shown["neuron_id"].astype(str)
    if "class" in shown:
        names = shown["class"].astype(str) + ": " + names
    _label_points(axes, effect[best], height[best], names.iloc[best].tolist())
    return figure


@styled
def plot_roc(predictions: pd.DataFrame, positive_class: str, methods: Mapping[str, Method]) -> Figure:
    """Draws the slide-level ROC curve of every method on the test slides.

    Args:
        predictions: long form of train_mil: method, split, slide_id, label, prob_<class>; label as class name.
        positive_class: the class that is looked for; the others together are the rest.
        methods: what the methods are, by name.

    Raises:
        ValueError: the test slides are all of one kind, or there is no such class.
    """
    column = f"prob_{positive_class}"
    if column not in predictions:
        raise ValueError(f"Expected a column {column} in the predictions, got {list(predictions.columns)}.")
    curves = []
    for method, rows in predictions[predictions["split"] == "test"].groupby("method", sort=False):
        is_positive = np.asarray(rows["label"].astype(str) == positive_class)
        if is_positive.all() or not is_positive.any():
            raise ValueError(
                f"Expected test items with and without {positive_class!r}, got {is_positive.sum()} of "
                f"{len(is_positive)} with it: no ROC curve exists. Give folds that hold both (task=splits)."
            )
        scores = np.asarray(rows[column], dtype=float)
        curves.append((roc_auc_score(is_positive, scores), methods[str(method)], roc_curve(is_positive, scores)))
    figure = Figure(figsize=(7.8, 4.4))
    axes = figure.add_subplot()
    for auroc, method, (fpr, tpr, _) in sorted(curves, key=lambda curve: -curve[0]):
        axes.plot(fpr, tpr, label=f"{auroc:.3f}  {method.label}", **method.line)
    finish_roc(axes)
    figure.legend(loc="outside right center", title="AUROC", alignment="left")
    axes.set_title(f"Test set: {positive_class} against the rest")
    return figure


@styled
def plot_summary(summary: pd.DataFrame, methods: Mapping[str, Method], words: Words = SLIDES) -> Figure:
    """Draws, for each metric, every method's mean over folds and its value on all slides pooled, with their intervals.

    Args:
        summary: of summarize_cv: method, metric, mean, fold_low, fold_high, pooled, slide_low, slide_high.
        methods: what the methods are, by name; they are drawn in this order.
        words: what items are called.
    """
    metrics: Sequence[str] = list(dict.fromkeys(summary["metric"]))
    n_columns = min(len(metrics), _SUMMARY_COLUMNS)
    n_rows = -(-len(metrics) // n_columns)
    figure = Figure(figsize=(2.6 + 3.2 * n_columns, 0.6 + n_rows * (0.7 + 0.38 * len(methods))))
    grid = figure.subplots(n_rows, n_columns, sharey=True, squeeze=False).ravel()
    for axes in grid[len(metrics) :]:
        axes.set_axis_off()
    series = {
        "mean over folds": ("mean", "fold_low", "fold_high", BLUE, "o", -0.13),
        f"all test {words.items} pooled": ("pooled", "slide_low", "slide_high", ORANGE, "s", 0.13),
    }
    for axes, metric in zip(grid, metrics, strict=False):
        rows = summary[summary["metric"] == metric].set_index("method")
        for position, method in enumerate(methods):
            if method not in rows.index:
                continue
            row: Any = rows.loc[method]
            for value, low, high, color, marker, shift in series.values():
                axes.plot([row[low], row[high]], [position + shift] * 2, color=color, linewidth=2.2)
                axes.plot(row[value], position + shift, marker=marker, color=color, markersize=6, linestyle="")
        axes.set_title({"auroc": "AUROC"}.get(metric, metric.replace("_", " ").capitalize()))
        axes.grid(visible=False, axis="y")
    grid[0].set_yticks(range(len(methods)), [method.label for method in methods.values()])
    grid[0].set_ylim(len(methods) - 0.5, -0.5)
    for label, (*_, color, marker, _) in series.items():
        grid[0].plot([], [], color=color, marker=marker, label=label)
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def finish_roc(axes: Axes) -> None:
    """Gives a ROC panel its diagonal, limits and labels."""
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":", zorder=1)
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    axes.set(xlabel="False positive rate", ylabel="True positive rate")


def _label_points(axes: Axes, x: np.ndarray, y: np.ndarray, names: Sequence[str]) -> None:
    """Writes names in a column right of the points, with lines to them, so that no two overlap."""
    if not len(names):
        return
    low, high = axes.get_xlim()
    axes.set_xlim(low, high + 0.16 * (high - low))
    column = high + 0.05 * (high - low)
    bottom, top = axes.get_ylim()
    heights = spread(y, gap=0.055 * (top - bottom), low=bottom, high=top)
    line = {"arrowstyle": "-", "color": GREY, "linewidth": 0.7, "shrinkA": 0, "shrinkB": 2}
    for name, point_x, point_y, text_y in zip(names, x, y, heights, strict=True):
        axes.annotate(name, (point_x, point_y), (column, text_y), va="center", fontsize=10, arrowprops=line)


def _spans_decades(values: np.ndarray) -> bool:
    values = values[np.isfinite(values)]
    return bool(values.min() > 0 and values.max() > 20 * values.min())
