"""How well a score per patch finds outlined regions: AUROC and average precision, pooled and slide by slide."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import average_precision_score, roc_auc_score

from src.analysis.slide_metrics import ranking_areas

INTERVAL = (2.5, 97.5)
_VALUES_PER_CHUNK = 2**20
_METRICS = {"auroc": roc_auc_score, "average_precision": average_precision_score}


def relative_attention(attention: np.ndarray) -> np.ndarray:
    """Brings softmaxed attention weights to a scale that slides of different size share.

    Weights of a slide sum to one, so a patch of a large slide has a lower weight than an equally striking patch of a
    small one. Times the number of patches, 1 means "as much as if all patches were equal" on every slide. The order
    within a slide, and so every per-slide metric, does not change.

    Args:
        attention: softmaxed weights of the patches of one slide, [n_patches].
    """
    return np.asarray(attention, dtype=np.float64) * len(attention)


def score_pooled(patches: pd.DataFrame, methods: Sequence[str], n_bootstrap: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Scores every method on the patches of all slides together, with intervals over slides.

    Pooling asks that scores mean the same on every slide, which a threshold for clinical use would ask too; see
    `relative_attention`. The interval is the percentile bootstrap (Efron 1979) over whole slides, because patches of a
    slide are not independent; slides with and without positive patches are drawn apart, so that every draw has both
    classes. Its width says nothing when there is a single slide of a kind.

    Args:
        patches: one row a patch: `item_id`, boolean `label`, and a column of scores a method.
        methods: the columns to score.
        n_bootstrap: number of draws.
        seed: of the draws; all methods see the same ones.

    Returns:
        One row a method, in the order given: method, auroc, auroc_low, auroc_high, average_precision,
        average_precision_low, average_precision_high, mean_slide_auroc, mean_slide_average_precision (means over the
        slides that have both classes), n_slides, n_outlined_slides, n_patches, n_positive.

    Raises:
        ValueError: the patches are all of one class, or a score is not finite.
    """
    labels = patches["label"].to_numpy(bool)
    _check(patches, labels, methods)
    codes, _ = pd.factorize(patches["item_id"])
    has_positive = np.bincount(codes, weights=labels) > 0
    draws = _draw_slides(has_positive, n_bootstrap, np.random.default_rng(seed))
    by_slide: Any = score_slides(patches, methods).groupby("method")[list(_METRICS)].mean()
    counts = {"n_slides": len(has_positive), "n_outlined_slides": int(has_positive.sum())}
    counts |= {"n_patches": len(labels), "n_positive": int(labels.sum())}
    rows = []
    for method in methods:
        scores = patches[method].to_numpy(np.float64)
        limits = np.percentile(_bootstrap(scores, labels, codes, draws), INTERVAL, axis=1).T
        row = {"method": method}
        for (metric, measure), (low, high) in zip(_METRICS.items(), limits, strict=True):
            row |= {metric: float(measure(labels, scores)), f"{metric}_low": low, f"{metric}_high": high}
        means = {f"mean_slide_{metric}": by_slide[metric].get(method, np.nan) for metric in _METRICS}
        rows.append(row | means | counts)
    return pd.DataFrame(rows)


def score_slides(patches: pd.DataFrame, methods: Sequence[str]) -> pd.DataFrame:
    """Scores every method on every slide that has patches of both classes.

    Returns:
        item_id, method, auroc, average_precision, n_patches, n_positive.
    """
    rows = []
    for item_id, slide in patches.groupby("item_id", sort=False):
        labels = slide["label"].to_numpy(bool)
        if labels.all() or not labels.any():
            continue
        for method in methods:
            scores = slide[method].to_numpy(np.float64)
            measured = (float(measure(labels, scores)) for measure in _METRICS.values())
            rows.append((item_id, method, *measured, len(labels), int(labels.sum())))
    columns = ["item_id", "method", *_METRICS, "n_patches", "n_positive"]
    return pd.DataFrame(rows, columns=columns)


def choose_random_neuron(density: pd.Series, chosen: int, seed: int) -> int:
    """Draws a neuron to compare with, among those that fire at all and are not the chosen one.

    Args:
        density: share of train patches on which a neuron is active, indexed by neuron_id.
        chosen: the neuron that selection found.
        seed: the same seed and densities give the same neuron.

    Raises:
        ValueError: no other neuron is active.
    """
    neuron_ids = density.index.to_numpy()
    active = np.sort(neuron_ids[(density.to_numpy() > 0) & (neuron_ids != chosen)])
    if not len(active):
        raise ValueError(f"Expected active neurons besides neuron {chosen}, got none: train the SAE longer.")
    return int(np.random.default_rng(seed).choice(active))


def spread_out(ranked: list[str], n: int) -> list[str]:
    """Returns `n` items of a ranking, evenly spaced from its first to its last, the middle one of all in front.

    So the first is typical, and none is shown because it looks good.
    """
    if not ranked or n < 1:
        return []
    middle = (len(ranked) - 1) // 2
    places = np.linspace(0, len(ranked) - 1, min(n, len(ranked))).round().astype(int).tolist()
    # The middle replaces its nearest neighbour, so that there are still `n`.
    nearest = min(places, key=lambda place: abs(place - middle))
    return [ranked[place] for place in [middle, *(place for place in places if place != nearest)]]


def _bootstrap(scores: np.ndarray, labels: np.ndarray, codes: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Returns AUROC and average precision of each draw, [2, n_draws], in chunks that bound the memory."""
    chunks = np.array_split(draws, -(-len(draws) * len(scores) // _VALUES_PER_CHUNK))
    return np.concatenate([ranking_areas(scores, labels, chunk[:, codes]) for chunk in chunks if len(chunk)], axis=1)


def _draw_slides(has_positive: np.ndarray, n_draws: int, rng: np.random.Generator) -> np.ndarray:
    """Returns how often each slide is in each draw, [n_draws, n_slides]; slides of each kind keep their number."""
    draws = np.zeros((n_draws, len(has_positive)))
    for kind in (True, False):
        slides = np.flatnonzero(has_positive == kind)
        if len(slides):
            draws[:, slides] = rng.multinomial(len(slides), np.full(len(slides), 1 / len(slides)), size=n_draws)
    return draws


def _check(patches: pd.DataFrame, labels: np.ndarray, methods: Sequence[str]) -> None:
    if labels.all() or not labels.any():
        raise ValueError(
            f"Expected patches inside and outside the outlines, got {labels.sum()} of {len(labels)} inside. "
            "Look at the outlines of the test slides, or give localization.label_rule another value."
        )
    for method in methods:
        if len(slides := patches.loc[~np.isfinite(patches[method].astype(float)), "item_id"].tolist()):
            raise ValueError(f"Expected finite scores of {method}, got others on slide {slides[0]!r}.")
