"""Whether predicted probabilities are the shares that come true."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from src.analysis.cross_validation import prediction_arrays
from src.analysis.figure_style import GREY, styled
from src.analysis.methods import Method

_N_BINS = 10
_COLUMNS = 4


def calibrate(predictions: pd.DataFrame) -> pd.DataFrame:
    """Measures the calibration of every method.

    The Brier score is the mean squared difference of the probabilities and the outcome (G. W. Brier, Monthly Weather
    Review 78, 1950), of two classes that of the positive one, of more summed over the classes. The expected calibration
    error is the mean over ten bins of equal width of |share that came true - mean probability|, each bin weighing as
    many items as it holds; of two classes the positive one's probability (M. P. Naeini, G. F. Cooper and M.
    Hauskrecht, AAAI 2015), of more the largest probability and whether its class is right (C. Guo, G. Pleiss, Y. Sun
    and K. Q. Weinberger, ICML 2017, section 2). With few items it is above 0 even for perfect probabilities.

    Args:
        predictions: labelled items: method, item_id, case_id, label and prob_<class>, the positive of two last.

    Returns:
        method, n_items, brier, calibration_error, mean_probability and share_true; the difference of the last two says
        in which direction the probabilities are off as a whole.
    """
    rows = []
    for method, part in predictions.groupby("method", sort=False):
        probabilities, labels = prediction_arrays(part)
        confidence, is_true = _confidences(probabilities, labels)
        bins = reliability(confidence, is_true)
        error = np.sum(bins["n_items"] * np.abs(bins["share_true"] - bins["mean_probability"])) / len(part)
        outcomes = np.eye(probabilities.shape[1])[labels]
        brier = ((probabilities - outcomes) ** 2).sum(axis=1).mean() / (2 if probabilities.shape[1] == 2 else 1)
        row = {"method": method, "n_items": len(part), "brier": float(brier), "calibration_error": float(error)}
        rows.append(row | {"mean_probability": confidence.mean(), "share_true": is_true.mean()})
    return pd.DataFrame(rows)


def reliability(confidence: np.ndarray, is_true: np.ndarray) -> pd.DataFrame:
    """Returns mean probability, share that came true and number of items of each of ten bins of equal width.

    Empty bins are left out.

    Args:
        confidence: probabilities, [n_items].
        is_true: whether what they are of came true, [n_items] bool.
    """
    bins = np.minimum((confidence * _N_BINS).astype(int), _N_BINS - 1)
    table = pd.DataFrame({"bin": bins, "mean_probability": confidence, "share_true": is_true.astype(float)})
    grouped: Any = table.groupby("bin")
    return grouped.mean().assign(n_items=grouped.size()).reset_index()


@styled
def plot_reliability(predictions: pd.DataFrame, methods: Mapping[str, Method]) -> Figure:
    """Draws a panel a method: the share that came true over the probability, points as large as their bins.

    Args:
        predictions: as for `calibrate`.
        methods: what the methods are, by name.
    """
    names = list(dict.fromkeys(predictions["method"]))
    scores = calibrate(predictions).set_index("method")
    n_columns = min(len(names), _COLUMNS)
    n_rows = -(-len(names) // n_columns)
    figure = Figure(figsize=(0.6 + 2.75 * n_columns, 0.4 + 3.0 * n_rows))
    grid = figure.subplots(n_rows, n_columns, squeeze=False, sharex=True, sharey=True).ravel()
    for axes in grid[len(names) :]:
        axes.set_axis_off()
    for i, (axes, name) in enumerate(zip(grid, names, strict=False)):
        own: Any = predictions[predictions["method"] == name]
        confidence, is_true = _confidences(*prediction_arrays(own))
        bins = reliability(confidence, is_true)
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":", zorder=1)
        axes.plot(bins["mean_probability"], bins["share_true"], color=methods[name].color, linewidth=1.2)
        sizes = 12 + 260 * bins["n_items"] / len(confidence)
        axes.scatter(bins["mean_probability"], bins["share_true"], s=sizes, color=methods[name].color, zorder=3)
        score: Any = scores.loc[name]
        text = f"ECE {score['calibration_error']:.3f}, Brier {score['brier']:.3f}"
        axes.set_title(f"{methods[name].label}\n{text}", fontsize=10)
        axes.set(xlim=(-0.05, 1.05), ylim=(-0.05, 1.05), aspect="equal")
        axes.set(xlabel="Probability" if i + n_columns >= len(names) else "")
        axes.set(ylabel="Share that came true" if i % n_columns == 0 else "")
        axes.tick_params(labelbottom=i + n_columns >= len(names))
    return figure


def _confidences(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the probabilities that are judged and whether what they are of came true; see `calibrate`."""
    if probabilities.shape[1] == 2:
        return probabilities[:, 1], labels == 1
    return probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
