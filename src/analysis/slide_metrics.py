"""Classification metrics of slides under many weightings at once, which is what a bootstrap needs."""

import numpy as np


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
    return _one_against_rest(probabilities, labels, weights)[0]


def average_precision(probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns the mean precision over the recalled positives, as scikit-learn; NaN when a class is missing.

    Of two classes the last is the positive one; of more, the mean of each class against the rest.
    """
    return _one_against_rest(probabilities, labels, weights)[1]


METRICS = {metric.__name__: metric for metric in (accuracy, auroc, average_precision, balanced_accuracy)}
"""By name. Each takes probabilities [n_slides, n_classes], labels [n_slides] int and weights [n_resamples, n_slides]
(how often a slide was drawn), and returns [n_resamples], NaN where it is undefined."""


def ranking_areas(scores: np.ndarray, is_positive: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns AUROC and average precision of a score under each weighting, both [n_resamples].

    Args:
        scores: [n].
        is_positive: [n] bool.
        weights: how often each was drawn, [n_resamples, n].
    """
    order = np.argsort(-scores, kind="stable")
    is_last_of_tie = np.append(np.diff(scores[order]) != 0, True)
    weights, positive = weights[:, order], is_positive[order]
    true_positives = np.cumsum(weights * positive, axis=1)[:, is_last_of_tie]
    false_positives = np.cumsum(weights * ~positive, axis=1)[:, is_last_of_tie]
    hits, misses = np.diff(true_positives, prepend=0), np.diff(false_positives, prepend=0)
    called = true_positives + false_positives
    precision = np.divide(true_positives, called, out=np.zeros_like(called), where=called > 0)
    n_positive, n_negative = true_positives[:, -1], false_positives[:, -1]
    area = _ratio((misses * (true_positives - hits / 2)).sum(axis=1), n_positive * n_negative)
    mean_precision = _ratio((hits * precision).sum(axis=1), n_positive)
    return area, np.where(n_negative > 0, mean_precision, np.nan)


def _one_against_rest(probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    n_classes = probabilities.shape[1]
    tested = range(n_classes) if n_classes > 2 else (1,)
    return np.mean([ranking_areas(probabilities[:, one], labels == one, weights) for one in tested], axis=0)


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    numerator = np.asarray(numerator, dtype=float)
    return np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=np.asarray(denominator) > 0)
