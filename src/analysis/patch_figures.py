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
from src.analysis.froc import FALSE_POSITIVE_RATES, Detections, froc_curve, froc_scores
from src.analysis.localization import draw_slides
from src.analysis.methods import Method
from src.analysis.patch_metrics import BAND_GRID, curve_bands

_LONGEST_CAPTION = 13
_FEWEST_FALSE, _MOST_FALSE = 0.125, 16.0  # false detections a slide that a FROC curve shows


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
def plot_patch_curves(
    patches: pd.DataFrame, methods: Mapping[str, Method], n_bootstrap: int = 200, seed: int = 0
) -> Figure:
    """Draws ROC and precision-recall curves over the patches of all slides, with 95 % bands.

    Bands are pointwise over bootstrap draws of whole slides (see `score_pooled`), of sensitivity at each false positive
    rate and of precision at each recall.

    Args:
        patches: one row a patch: `item_id`, boolean `label`, and a column of scores a method.
        methods: the columns to draw and what they are; the legend gives AUROC / average precision, best first.
        n_bootstrap: draws of the bands; 0: no bands.
        seed: of the draws.
    """
    labels = patches["label"].to_numpy(bool)
    codes, _ = pd.factorize(patches["item_id"])
    draws = draw_slides(np.bincount(codes, weights=labels) > 0, n_bootstrap, np.random.default_rng(seed))
    figure = Figure(figsize=(10.2, 3.9))
    roc_axes, pr_axes = figure.subplots(1, 2)
    scored = [(roc_auc_score(labels, patches[method]), method) for method in methods]
    for auroc, method in sorted(scored, reverse=True):
        scores = patches[method].to_numpy(float)
        fpr, tpr, _ = roc_curve(labels, scores)
        precision, recall, _ = precision_recall_curve(labels, scores)
        label = f"{auroc:.3f} / {average_precision_score(labels, scores):.3f}  {methods[method].label}"
        if n_bootstrap:
            look: Any = {"color": methods[method].color, "alpha": 0.13, "linewidth": 0, "zorder": 1.5}
            for axes, band in zip((roc_axes, pr_axes), curve_bands(scores, labels, codes, draws), strict=True):
                axes.fill_between(BAND_GRID, *band, **look)
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
def plot_froc(detections: Mapping[str, Detections], methods: Mapping[str, Method]) -> Figure:
    """Draws the share of lesions that each method finds against its false detections a slide.

    Args:
        detections: of each method.
        methods: what they are; the legend gives the FROC score, best first.
    """
    figure = Figure(figsize=(7.4, 3.9))
    axes = figure.add_subplot()
    scored = [(float(froc_scores(found, np.ones((1, found.n_slides)))[0]), name) for name, found in detections.items()]
    for score, name in sorted(scored, key=lambda one: -np.nan_to_num(one[0])):
        rates, found = froc_curve(detections[name])
        shown = (rates > _FEWEST_FALSE) & (rates < _MOST_FALSE)
        start, end = (found[rates <= rate].max(initial=0.0) for rate in (_FEWEST_FALSE, _MOST_FALSE))
        x = np.concatenate([[_FEWEST_FALSE], rates[shown], [_MOST_FALSE]])
        y = np.concatenate([[start], found[shown], [end]])
        look: Any = methods[name].line
        axes.step(x, y, where="post", label=f"{score:.3f}  {methods[name].label}", **look)
    for rate in FALSE_POSITIVE_RATES:
        axes.axvline(rate, color=GREY, linewidth=0.8, linestyle=":", zorder=1)
    axes.set(xscale="log", xlim=(_FEWEST_FALSE, _MOST_FALSE), ylim=(-0.01, 1.01))
    axes.set_xticks(FALSE_POSITIVE_RATES, [f"{rate:g}" for rate in FALSE_POSITIVE_RATES])
    axes.xaxis.minorticks_off()
    axes.set(xlabel="False detections a slide", ylabel="Lesions found")
    figure.legend(loc="outside right center", title="FROC score", alignment="left")
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
