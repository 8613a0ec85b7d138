"""Linear probes of small data, fitted by scikit-learn's logistic regression."""

import logging
import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

_LOGGER = logging.getLogger(__name__)
_MAX_ITERATIONS = 1000


def fit_logistic(
    values: np.ndarray, targets: np.ndarray, weights: np.ndarray, l2: float
) -> tuple[np.ndarray, np.ndarray]:
    """Minimises what `src.modules.probe.ProbeModule` does without L1, by L-BFGS.

    Args:
        values: [n, d] shifted and scaled.
        targets: [n] int, every class at least once; or [n, n_classes], 1, 0 or NaN, each label known both ways.
        weights: of each class, [n_classes] or [n_classes, 2].
        l2: the penalty `l2 / 2 |W|^2` beside the mean loss.

    Returns:
        Weights [n_classes, d] and biases [n_classes].
    """
    if targets.ndim == 2:
        fitted = [_fit_label(values, labels, weights[index], l2) for index, labels in enumerate(targets.T)]
        return np.concatenate([weight for weight, _ in fitted]), np.concatenate([bias for _, bias in fitted])
    # Two classes are one logit there and two here, each with half of the weight: half of the penalty.
    halved = l2 / 2 if len(weights) == 2 else l2
    weight, bias = _fit(values, targets, weights[targets], halved)
    if len(weight) == 1:
        return np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    return weight, bias


def _fit_label(values: np.ndarray, labels: np.ndarray, weights: np.ndarray, l2: float) -> tuple[np.ndarray, np.ndarray]:
    known = ~np.isnan(labels)
    chosen = labels[known].astype(int)
    # The mean over all vectors, as in training, where the weights make up for those that are not known.
    return _fit(values[known], chosen, weights[chosen] * known.mean(), l2)


def _fit(values: np.ndarray, labels: np.ndarray, weights: np.ndarray, l2: float) -> tuple[np.ndarray, np.ndarray]:
    strength = 1 / (l2 * len(values)) if l2 else np.inf
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # said below
        model = LogisticRegression(C=strength, max_iter=_MAX_ITERATIONS).fit(values, labels, sample_weight=weights)
    if model.n_iter_.max() >= _MAX_ITERATIONS:
        _LOGGER.warning("L-BFGS ended after %d steps with l2=%g; a larger one converges.", _MAX_ITERATIONS, l2)
    return np.atleast_2d(model.coef_), np.atleast_1d(model.intercept_)
