"""Figures of patches: how well scores find outlined patches, and the patches on which neurons fire most."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from src.analysis.figure_style import GREY, VERMILLION, styled
from src.analysis.figures import finish_roc
from src.analysis.methods import Method

_LONGEST_CAPTION = 13


@dataclass(frozen=True)
class Exemplar:
    """A patch to show: its RGB pixels, a line under it, and whether it lies in an outline (None: not known)."""

    pixels: np.ndarray
    caption: str
    is_positive: bool | None


def choose_exemplars(item_ids: Sequence[str], n: int, max_per_item: int) -> list[int]:
    """Returns which places of a neuron to show, from several items.

    Args:
        item_ids: the item of each place, most active first.
        n: at most so many.
        max_per_item: at most so many of one item.
    """
    items = pd.Series(item_ids, dtype=object)
    return np.flatnonzero(items.groupby(items).cumcount() < max_per_item)[:n].tolist()


@styled
def plot_patch_curves(patches: pd.DataFrame, methods: Mapping[str, Method]) -> Figure:
    """Draws ROC and precision-recall curves over the patches of all slides.

    Args:
        patches: one row a patch: boolean `label`, and a column of scores a method.
        methods: the columns to draw and what they are; the legend gives AUROC / average precision, best first.
    """
    labels = patches["label"].to_numpy(bool)
    figure = Figure(figsize=(10.2, 3.9))
    roc_axes, pr_axes = figure.subplots(1, 2)
    scored = [(roc_auc_score(labels, patches[method]), method) for method in methods]
    for auroc, method in sorted(scored, reverse=True):
        scores = patches[method].to_numpy(float)
        fpr, tpr, _ = roc_curve(labels, scores)
        precision, recall, _ = precision_recall_curve(labels, scores)
        label = f"{auroc:.3f} / {average_precision_score(labels, scores):.3f}  {methods[method].label}"
        roc_axes.plot(fpr, tpr, label=label, **methods[method].line)
        pr_axes.step(recall, precision, where="post", **methods[method].line)
    finish_roc(roc_axes)
    roc_axes.set_title("ROC")
    pr_axes.axhline(labels.mean(), color=GREY, linewidth=1, linestyle=":", zorder=1)
    pr_axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal", xlabel="Recall", ylabel="Precision")
    pr_axes.set_title("Precision and recall")
    figure.legend(loc="outside right center", title="AUROC / average precision", alignment="left")
    return figure


@styled
def plot_exemplars(rows: Sequence[tuple[str, Sequence[Exemplar]]]) -> Figure:
    """Draws one row of patches a neuron, most active first; a coloured frame says that a patch lies in an outline.

    Args:
        rows: a title and its patches.

    Raises:
        ValueError: there is no patch at all.
    """
    n_columns = max((len(exemplars) for _, exemplars in rows), default=0)
    if not n_columns:
        raise ValueError("Expected patches to show, got none: the chosen neurons are silent on all slides.")
    figure = Figure(figsize=(max(4.0, n_columns), 1.5 * len(rows)))
    strips: Any = figure.subfigures(len(rows), 1, squeeze=False)[:, 0]
    for strip, (title, exemplars) in zip(strips, rows, strict=True):
        strip.suptitle(title, x=0.005, ha="left", fontsize=12)
        panels = strip.subplots(1, n_columns, squeeze=False)[0]
        for axes in panels:
            axes.set(xticks=[], yticks=[])
            axes.grid(visible=False)
            axes.spines[:].set_visible(False)
        for axes, exemplar in zip(panels, exemplars, strict=False):
            axes.imshow(exemplar.pixels, interpolation="antialiased")
            axes.set_xlabel(_shorten(exemplar.caption), fontsize=8)
            if exemplar.is_positive is not None:
                axes.spines[:].set(visible=True, linewidth=3, color=VERMILLION if exemplar.is_positive else GREY)
    return figure


def _shorten(text: str) -> str:
    """Cuts the middle out of a text that is wider than a patch; ids differ at their ends."""
    return text if len(text) <= _LONGEST_CAPTION else f"{text[:5]}…{text[-(_LONGEST_CAPTION - 6) :]}"
