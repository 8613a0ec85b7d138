"""Metrics of scores of patches under many weightings of slides at once, which is what a bootstrap needs."""

import numpy as np

BAND_GRID = np.linspace(0, 1, 201)
"""Where bands of curves are evaluated."""


def sensitivity_at(scores: np.ndarray, is_positive: np.ndarray, weights: np.ndarray, specificity: float) -> np.ndarray:
    """Returns the largest share of positives found at a specificity of at least the one given, [n_draws].

    Args:
        scores: [n].
        is_positive: [n] bool.
        weights: how often each was drawn, [n_draws, n].
        specificity: share of negatives that are not found.
    """
    order = np.argsort(-scores, kind="stable")
    is_last_of_tie = np.append(np.diff(scores[order]) != 0, True)
    drawn, positive = weights[:, order], is_positive[order]
    hits = np.cumsum(drawn * positive, axis=1)[:, is_last_of_tie]
    false = np.cumsum(drawn * ~positive, axis=1)[:, is_last_of_tie]
    allowed = (1 - specificity) * false[:, -1:]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(false <= allowed + 1e-9, hits, 0.0).max(axis=1) / hits[:, -1]


def curve_bands(
    scores: np.ndarray, is_positive: np.ndarray, slides: np.ndarray, draws: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns pointwise 95 % bands over draws of slides, each [2, len(BAND_GRID)].

    Args:
        scores: [n].
        is_positive: [n] bool.
        slides: [n] int, the slide of each patch.
        draws: how often each slide was drawn, [n_draws, n_slides].

    Returns:
        Of sensitivity at the false positive rates of `BAND_GRID`, and of precision at its recalls.
    """
    order = np.argsort(-scores, kind="stable")
    last = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    roc, precision = [], []
    for weights in draws:
        drawn = weights[slides[order]]
        hits = np.cumsum(drawn * is_positive[order])[last]
        false = np.cumsum(drawn)[last] - hits
        recall, rate = hits / hits[-1], false / max(false[-1], 1)
        roc.append(np.interp(BAND_GRID, np.append(0, rate), np.append(0, recall)))
        places = np.minimum(np.searchsorted(recall, BAND_GRID), len(recall) - 1)
        precision.append((hits / np.maximum(hits + false, 1e-12))[places])
    bands = (np.percentile(one, (2.5, 97.5), axis=0) for one in (roc, precision))
    return tuple(bands)  # pyright: ignore[reportReturnType]


def best_threshold(scores: np.ndarray, is_positive: np.ndarray) -> float:
    """Returns the score from which on patches are called positive for the largest F1, NaN without positives.

    Args:
        scores: [n] of slides that are not judged by it.
        is_positive: [n] bool.
    """
    if not is_positive.any():
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    is_last_of_tie = np.append(np.diff(scores[order]) != 0, True)
    hits = np.cumsum(is_positive[order])[is_last_of_tie]
    called = np.flatnonzero(is_last_of_tie) + 1
    best = np.argmax(2 * hits / (called + is_positive.sum()))
    return float(scores[order][is_last_of_tie][best])


def threshold_metrics(
    scores: np.ndarray,
    is_positive: np.ndarray,
    covered: np.ndarray,
    slides: np.ndarray,
    threshold: float,
    weights: np.ndarray,
) -> dict[str, np.ndarray]:
    """Returns F1 of all patches and the mean Dice of outlined slides at a threshold, each [n_draws]; NaN without one.

    F1 counts patches by their labels, all slides together. Dice compares areas slide by slide: twice the outlined area
    of the found patches over the sum of the found and the outlined area; tissue without patches is not counted.

    Args:
        scores: [n].
        is_positive: [n] bool.
        covered: [n] the share of each patch that is outlined.
        slides: [n] int, the slide of each patch.
        threshold: patches of at least this score are found.
        weights: how often each slide was drawn, [n_draws, n_slides].
    """
    n_slides = weights.shape[1]
    if np.isnan(threshold):
        return {name: np.full(len(weights), np.nan) for name in ("f1", "dice")}
    found = scores >= threshold
    hits, called, positive, overlap, area = (
        np.bincount(slides, values, n_slides)
        for values in (found & is_positive, found, is_positive, found * covered, covered)
    )
    is_outlined = area > 0
    dice = np.where(is_outlined, 2 * overlap / np.maximum(called + area, 1e-12), 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            "f1": 2 * (weights @ hits) / (weights @ (called + positive)),
            "dice": (weights @ dice) / (weights @ is_outlined),
        }


def pointing_game(scores: np.ndarray, is_positive: np.ndarray, slides: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns the share of outlined slides whose highest patch is inside, [n_draws]; ties count their share.

    Args:
        scores: as `threshold_metrics`, and so the next three.
        is_positive: see there.
        slides: see there.
        weights: see there.
    """
    n_slides = weights.shape[1]
    highest = np.full(n_slides, -np.inf)
    np.maximum.at(highest, slides, scores)
    is_highest = scores == highest[slides]
    share = np.bincount(slides, is_highest & is_positive, n_slides) / np.maximum(
        np.bincount(slides, is_highest, n_slides), 1
    )
    is_outlined = np.bincount(slides, is_positive, n_slides) > 0
    with np.errstate(divide="ignore", invalid="ignore"):
        return (weights @ (share * is_outlined)) / (weights @ is_outlined)
