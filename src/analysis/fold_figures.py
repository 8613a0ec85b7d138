"""Figures over folds: ROC and precision-recall curves with bands, and where the chosen neurons rank in every fold."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from src.analysis.cross_validation import DRAWS
from src.analysis.figure_style import GREY, VERMILLION, styled
from src.analysis.figures import finish_roc
from src.analysis.methods import Method

_COLUMNS = 4
_GRID = np.linspace(0, 1, 201)
_Curve = Callable[[np.ndarray, np.ndarray], np.ndarray]


def roc_on_grid(is_positive: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Returns the true positive rate at 201 false positive rates from 0 to 1, the curve's points joined by lines.

    Args:
        is_positive: [n] bool, of both kinds.
        scores: [n].
    """
    fpr, tpr, _ = roc_curve(is_positive, scores, drop_intermediate=False)
    # Of points above each other the highest counts; numpy takes the last of equal ones.
    return np.interp(_GRID, fpr, tpr)


def precision_on_grid(is_positive: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Returns the precision at 201 recalls from 0 to 1: that of the highest threshold which reaches the recall.

    Args:
        is_positive: [n] bool, of both kinds.
        scores: [n].
    """
    precision, recall, _ = precision_recall_curve(is_positive, scores)
    # Ascending recall, without the point (0, 1) that belongs to no threshold.
    precision, recall = precision[-2::-1], recall[-2::-1]
    return precision[np.searchsorted(recall, _GRID)]


@styled
def plot_roc_bands(predictions: pd.DataFrame, positive_class: str, methods: Mapping[str, Method]) -> Figure:
    """Draws a panel a method: its ROC curve in every fold, their mean at equal false positive rates, and mean ± sd.

    Vertical averaging: T. Fawcett, "An introduction to ROC analysis", Pattern Recognition Letters 27 (2006), section
    9.1. Folds whose test items are of one kind have no curve.

    Args:
        predictions: test items of all folds, as for `fold_metrics`.
        positive_class: the class that is looked for.
        methods: what the methods are, by name.

    Raises:
        ValueError: when no fold has test items of both kinds.
    """
    panels = _fold_curves(predictions, positive_class, roc_on_grid, roc_auc_score)
    figure, grid = _make_panels(len(panels))
    for axes, (name, curves, areas) in zip(grid, panels, strict=False):
        _draw_band(axes, methods[name], curves, areas, "AUROC")
        finish_roc(axes)
    _label_outer(grid, len(panels), "False positive rate", "True positive rate")
    return figure


@styled
def plot_precision_bands(predictions: pd.DataFrame, positive_class: str, methods: Mapping[str, Method]) -> Figure:
    """Draws the same of precision and recall, the share of positive items as a dotted line; see `plot_roc_bands`.

    Args:
        predictions: see there.
        positive_class: see there.
        methods: see there.

    Raises:
        ValueError: when no fold has test items of both kinds.
    """
    panels = _fold_curves(predictions, positive_class, precision_on_grid, average_precision_score)
    share = float(np.mean(predictions.drop_duplicates("item_id")["label"] == positive_class))
    figure, grid = _make_panels(len(panels))
    for axes, (name, curves, areas) in zip(grid, panels, strict=False):
        _draw_band(axes, methods[name], curves, areas, "AP")
        axes.axhline(share, color=GREY, linewidth=1, linestyle=":", zorder=1)
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    _label_outer(grid, len(panels), "Recall", "Precision")
    return figure


@styled
def plot_fold_ranks(ranks: pd.DataFrame, n_shown: int = 100) -> Figure:
    """Draws the ranks that the neurons chosen in some fold have in all folds, a line a neuron.

    Args:
        ranks: neuron (its name), fold, rank from 1 on (NaN where the fold has no such neuron or could not test it) and
            is_chosen, whether the fold chose it.
        n_shown: ranks above are drawn at the edge, as "beyond".
    """
    folds = sorted(ranks["fold"].unique(), key=lambda fold: (len(str(fold)), str(fold)))
    position = {fold: i for i, fold in enumerate(folds)}
    figure = Figure(figsize=(2.4 + 1.1 * len(folds), 4.6))
    axes = figure.add_subplot()
    chosen_ranks: Any = ranks[ranks["is_chosen"]]
    counts = chosen_ranks.groupby("neuron").size()
    edge = 1.6 * n_shown
    for neuron, rows in ranks.groupby("neuron"):
        is_often = counts.get(neuron, 0) > len(folds) / 2
        x = np.array([position[fold] for fold in rows["fold"]])
        order = np.argsort(x)
        x, rank = x[order], np.minimum(rows["rank"].fillna(np.inf).to_numpy(float), edge)[order]
        chosen = rows["is_chosen"].to_numpy(bool)[order]
        look: Any = {"color": VERMILLION if is_often else GREY, "alpha": 1.0 if is_often else 0.6}
        axes.plot(x, rank, linewidth=1.8 if is_often else 0.9, zorder=3 if is_often else 2, **look)
        axes.plot(x[chosen], rank[chosen], "o", markersize=5, zorder=4 if is_often else 2, **look)
        if is_often:
            axes.annotate(str(neuron), (x[-1], rank[-1]), (6, 0), textcoords="offset points", va="center", fontsize=9)
    axes.set_yscale("log")
    axes.set_ylim(edge * 1.15, 0.8)
    ticks = [tick for tick in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if tick <= n_shown]
    axes.set_yticks([*ticks, edge], [*map(str, ticks), f"> {n_shown}"])
    axes.minorticks_off()
    axes.set_xticks(range(len(folds)), [str(fold) for fold in folds])
    axes.set_xlim(-0.25, len(folds) - 0.35)
    axes.set(xlabel="Fold", ylabel="Rank")
    axes.set_title(f"{(counts > len(folds) / 2).sum()} of {len(counts)} chosen neurons in most folds")
    return figure


def _fold_curves(
    predictions: pd.DataFrame, positive_class: str, curve: _Curve, area: Callable[..., Any]
) -> list[tuple[str, np.ndarray, list[float]]]:
    """Returns for every method its name, curves [n_folds, n_grid] and areas."""
    keys = ["fold", *(key for key in DRAWS if key in predictions)]
    panels = []
    for method, of_method in predictions.groupby("method", sort=False):
        curves, areas = [], []
        for _, part in of_method.groupby(keys):
            is_positive = (part["label"] == positive_class).to_numpy()
            if is_positive.any() and not is_positive.all():
                scores = part[f"prob_{positive_class}"].to_numpy(float)
                curves.append(curve(is_positive, scores))
                areas.append(float(area(is_positive, scores)))
        if curves:
            panels.append((str(method), np.stack(curves), areas))
    if not panels:
        raise ValueError(
            f"Expected a fold with test items with and without {positive_class!r}, got none: no curve exists. Give "
            "folds that hold both (task=splits)."
        )
    return panels


def _make_panels(n: int) -> tuple[Figure, np.ndarray]:
    n_columns = min(n, _COLUMNS)
    n_rows = -(-n // n_columns)
    figure = Figure(figsize=(0.6 + 2.75 * n_columns, 0.4 + 3.0 * n_rows))
    grid = figure.subplots(n_rows, n_columns, squeeze=False, sharex=True, sharey=True).ravel()
    for axes in grid[n:]:
        axes.set_axis_off()
    return figure, grid


def _draw_band(axes: Axes, method: Method, curves: np.ndarray, areas: list[float], metric: str) -> None:
    mean = curves.mean(axis=0)
    for one in curves:
        axes.plot(_GRID, one, color=method.color, linewidth=0.6, alpha=0.35)
    text = f"{metric} {np.mean(areas):.3f}"
    if len(curves) > 1:
        sd = curves.std(axis=0, ddof=1)
        low, high = np.clip(mean - sd, 0, 1), np.clip(mean + sd, 0, 1)
        axes.fill_between(_GRID, low, high, color=method.color, alpha=0.2, linewidth=0)
        text += f" ± {np.std(areas, ddof=1):.3f}"
    axes.plot(_GRID, mean, color=method.color, linewidth=2)
    axes.set_title(f"{method.label}\n{text}", fontsize=10)


def _label_outer(grid: np.ndarray, n: int, x_label: str, y_label: str) -> None:
    n_columns = min(n, _COLUMNS)
    for i, axes in enumerate(grid[:n]):
        axes.set(xlabel=x_label if i + n_columns >= n else "", ylabel=y_label if i % n_columns == 0 else "")
        axes.tick_params(labelbottom=i + n_columns >= n)
