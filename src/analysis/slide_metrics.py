"""Classification metrics of slides under many weightings at once, which is what a bootstrap needs."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

Metric = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def accuracy(probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns the share of slides whose most probable class is theirs; see `METRICS` for arguments."""
    correct = probabilities.argmax(axis=1) == labels
    return _ratio(weights @ correct, weights.sum(axis=1))


def balanced_accuracy(probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns the mean over the classes that occur of the share of their slides that are recognised."""
    correct = probabilities.argmax(axis=1) == labels
    classes = np.arange(probabilities.shape[1])
    recalls = np.stack([_ratio(weights @ (correct & (labels == c)), weights @ (labels == c)) for c in classes])
    occurs = ~np.isnan(recalls)
    return _ratio(np.where(occurs, recalls, 0.0).sum(axis=0), occurs.sum(axis=0))


def auroc(probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns the area under the ROC curve, ties counting half, NaN when a class is missing.

    Of two classes the last is the positive one; of more, the mean of each class against the rest.
    """

    def area(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
        # Columns go from low to high score: a positive beats all negatives below it and half of those beside it.
        below = negative.cumsum(axis=1) - negative / 2
        return _ratio((positive * below).sum(axis=1), positive.sum(axis=1) * negative.sum(axis=1))

    return _one_against_rest(area, probabilities, labels, weights)


def average_precision(probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns the mean precision over the recalled positives, as scikit-learn; NaN when a class is missing.

    Of two classes the last is the positive one; of more, the mean of each class against the rest.
    """

    def area(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
        recalled = positive[:, ::-1].cumsum(axis=1)
        drawn = recalled + negative[:, ::-1].cumsum(axis=1)
        precision = np.divide(recalled, drawn, out=np.zeros_like(drawn), where=drawn > 0)
        value = _ratio((positive[:, ::-1] * precision).sum(axis=1), positive.sum(axis=1))
        return np.where(negative.sum(axis=1) > 0, value, np.nan)

    return _one_against_rest(area, probabilities, labels, weights)


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "accuracy": accuracy,
        "auroc": auroc,
        "average_precision": average_precision,
        "balanced_accuracy": balanced_accuracy,
    }
)
"""By name. Each takes probabilities [n_slides, n_classes], labels [n_slides] int and weights [n_resamples, n_slides]
(how often a slide was drawn), and returns [n_resamples], NaN where it is undefined."""


def _one_against_rest(
    area: Callable[[np.ndarray, np.ndarray], np.ndarray],
    probabilities: np.ndarray,
    labels: np.ndarray,
    weights: np.ndarray,
) -> np.ndarray:
    n_classes = probabilities.shape[1]
    areas = []
    for class_index in range(n_classes) if n_classes > 2 else (1,):
        scores, groups = np.unique(probabilities[:, class_index], return_inverse=True)
        is_positive = labels == class_index
        # Weight of positives and negatives at each distinct score: [n_resamples, n_scores].
        membership = np.zeros((len(labels), len(scores)))
        membership[np.arange(len(labels)), groups] = 1.0
        areas.append(area((weights * is_positive) @ membership, (weights * ~is_positive) @ membership))
    return np.mean(areas, axis=0)


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    numerator = np.asarray(numerator, dtype=float)
    return np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=np.asarray(denominator) > 0)
