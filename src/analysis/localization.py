"""How well a score per patch finds outlined regions: AUROC and average precision, pooled and slide by slide."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import average_precision_score, roc_auc_score

from src.analysis.delong import ClusteredAreas, delong
from src.analysis.froc import Detections, froc_scores
from src.analysis.patch_metrics import pointing_game, sensitivity_at, threshold_metrics
from src.analysis.slide_metrics import ranking_areas

INTERVAL = (2.5, 97.5)
_VALUES_PER_CHUNK = 2**20
_Z_95 = 1.959964
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


@dataclass(frozen=True)
class PatchScoring:
    """How scores of patches are measured, beyond what their order says.

    Attributes:
        thresholds: of each method, the score from which a patch counts as found, tuned on other slides; none: what
            needs a threshold is NaN.
        specificity: at which the sensitivity is read.
        detections: of each method, for the FROC score; none: NaN.
        n_bootstrap: draws of whole slides.
        seed: of the draws.
    """

    thresholds: Mapping[str, float] = field(default_factory=dict)
    specificity: float = 0.95
    detections: Mapping[str, Detections] = field(default_factory=dict)
    n_bootstrap: int = 1000
    seed: int = 0


def score_pooled(patches: pd.DataFrame, methods: Sequence[str], scoring: PatchScoring | None = None) -> pd.DataFrame:
    """Scores every method on the patches of all slides together, with intervals over slides.

    Pooling asks that scores mean the same on every slide, which a threshold for clinical use would ask too; see
    `relative_attention`. The interval is the percentile bootstrap (Efron 1979) over whole slides, because patches of a
    slide are not independent; slides with and without positive patches are drawn apart, so that every draw has both
    classes.

    Args:
        patches: one row a patch: item_id, boolean label, a column a method, and where it is known `coverage`, the share
            of the patch inside outlines.
        methods: the columns to score.
        scoring: what else to measure.

    Returns:
        One row a method, in the order given: method; of each metric its value and <metric>_low, <metric>_high;
        mean_slide_auroc, mean_slide_average_precision (means over the slides that have both classes), auroc_delong_low,
        auroc_delong_high (clustered by slide, see `delong`), threshold, n_slides, n_outlined_slides, n_patches,
        n_positive, n_lesions. The metrics: auroc, average_precision, sensitivity (at the specificity), f1 (of patches,
        at the threshold), dice (mean over outlined slides of the overlap of found patches with the outlined area of all
        patches), pointing_game (share of outlined slides whose highest patch is inside: J. Zhang et al., ECCV 2016),
        froc (see `froc_scores`).

    Raises:
        ValueError: the patches are all of one class, or a score is not finite.
    """
    scoring = scoring or PatchScoring()
    labels = patches["label"].to_numpy(bool)
    _check(patches, labels, methods)
    codes, _ = pd.factorize(patches["item_id"])
    has_positive = np.bincount(codes, weights=labels) > 0
    draws = draw_slides(has_positive, scoring.n_bootstrap, np.random.default_rng(scoring.seed))
    draws = np.concatenate([np.ones((1, len(has_positive))), draws])  # the first is the sample itself
    by_slide: Any = score_slides(patches, methods).groupby("method")[list(_METRICS)].mean()
    counts = {"n_slides": len(has_positive), "n_outlined_slides": int(has_positive.sum())}
    counts |= {"n_patches": len(labels), "n_positive": int(labels.sum())}
    clustered = _clustered(patches, methods, labels, codes)
    covered = patches["coverage"].to_numpy(np.float64) if "coverage" in patches else labels.astype(np.float64)
    rows = []
    for number, method in enumerate(methods):
        scores = patches[method].to_numpy(np.float64)
        drawn = _ranked_metrics(scores, labels, codes, draws, scoring.specificity)
        threshold = scoring.thresholds.get(method, np.nan)
        drawn |= threshold_metrics(scores, labels, covered, codes, threshold, draws)
        drawn["pointing_game"] = pointing_game(scores, labels, codes, draws)
        found = scoring.detections.get(method)
        drawn["froc"] = np.full(len(draws), np.nan) if found is None else _in_chunks(partial(froc_scores, found), draws)
        row: dict[str, Any] = {"method": method}
        for metric, values in drawn.items():
            low, high = _percentiles(values[1:])
            row |= {metric: float(values[0]), f"{metric}_low": low, f"{metric}_high": high}
        row |= {f"mean_slide_{metric}": by_slide[metric].get(method, np.nan) for metric in _METRICS}
        interval = (np.nan, np.nan) if clustered is None else clustered.interval(number)
        row |= dict(zip(("auroc_delong_low", "auroc_delong_high"), interval, strict=True))
        n_lesions = 0 if found is None else len(found.lesion_scores)
        rows.append(row | {"threshold": threshold} | counts | {"n_lesions": n_lesions})
    return pd.DataFrame(rows)


def compare_methods(patches: pd.DataFrame, methods: Sequence[str]) -> pd.DataFrame:
    """Tests the first method's pooled AUROC against every other's by DeLong's method, clustered by slide.

    Returns:
        method, other, difference, low, high (95 %), p_value; empty where fewer than two slides have positives.
    """
    labels = patches["label"].to_numpy(bool)
    codes, _ = pd.factorize(patches["item_id"])
    columns = ["method", "other", "difference", "low", "high", "p_value"]
    areas = _clustered(patches, methods, labels, codes)
    if areas is None:
        return pd.DataFrame(columns=columns)
    rows = []
    for number, other in enumerate(methods[1:], start=1):
        difference, error, p_value = areas.difference(0, number)
        margin = _Z_95 * error
        rows.append((methods[0], other, difference, difference - margin, difference + margin, p_value))
    return pd.DataFrame(rows, columns=columns)


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


def _ranked_metrics(
    scores: np.ndarray, labels: np.ndarray, codes: np.ndarray, draws: np.ndarray, specificity: float
) -> dict[str, np.ndarray]:
    """Returns AUROC, average precision and sensitivity of each draw, [n_draws]."""

    def measure(weights: np.ndarray) -> np.ndarray:
        of_patches = weights[:, codes]
        return np.stack(
            [*ranking_areas(scores, labels, of_patches), sensitivity_at(scores, labels, of_patches, specificity)]
        )

    per_chunk = max(1, _VALUES_PER_CHUNK // len(scores))
    chunks = [measure(draws[start : start + per_chunk]) for start in range(0, len(draws), per_chunk)]
    return dict(zip((*_METRICS, "sensitivity"), np.concatenate(chunks, axis=1), strict=True))


def _clustered(
    patches: pd.DataFrame, methods: Sequence[str], labels: np.ndarray, codes: np.ndarray
) -> ClusteredAreas | None:
    """Returns the areas by DeLong's method; None where too few slides hold a class."""
    if min(len(np.unique(codes[labels])), len(np.unique(codes[~labels]))) < 2:
        return None
    return delong(patches[list(methods)].to_numpy(np.float64).T, labels, codes)


def _in_chunks(measure: Callable[[np.ndarray], np.ndarray], draws: np.ndarray, n: int = 100) -> np.ndarray:
    return np.concatenate([measure(draws[start : start + n]) for start in range(0, len(draws), n)])


def _percentiles(values: np.ndarray) -> tuple[float, float]:
    known = values[np.isfinite(values)]
    if not len(known):
        return np.nan, np.nan
    low, high = np.percentile(known, INTERVAL)
    return float(low), float(high)


def draw_slides(has_positive: np.ndarray, n_draws: int, rng: np.random.Generator) -> np.ndarray:
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
