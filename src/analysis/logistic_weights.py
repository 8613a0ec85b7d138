"""Neurons weighed together: the weights of logistic regressions on item values and, under max pooling, on rows."""

import logging
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold

from src.ops.sparse_latents import SparseLatents

_LOGGER = logging.getLogger(__name__)
_STRENGTHS = np.logspace(-4, 2, 7).tolist()
_MOST_FOLDS = 5
_MOST_ROUNDS = 30
_MAX_ITERATIONS = 1000


def logistic_weights(
    values: np.ndarray,
    labels: np.ndarray,
    tested: Sequence[int],
    groups: np.ndarray,
    strata: np.ndarray | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Returns the weight of every neuron in a ridge logistic regression of each class against the rest.

    Columns are standardised, so that weights compare; within strata they are centred, so that what marks a stratum has
    no say. The strength of the penalty is the one of seven (C from 1e-4 to 100) with the largest likelihood of held-out
    rows, over inner folds that keep groups together.

    Args:
        values: [n, n_columns].
        labels: [n] int.
        tested: classes.
        groups: [n] int, the case of each row.
        strata: [n] int; None: one.
        seed: of the inner folds.

    Returns:
        [n_tested, n_columns] float64, 0 for constant columns.

    Raises:
        ValueError: when a class has fewer than two cases.
    """
    values = values.astype(np.float64)
    if strata is not None:
        for stratum in np.unique(strata):
            values[strata == stratum] -= values[strata == stratum].mean(axis=0)
    scale = values.std(axis=0)
    used = scale > 1e-12
    scaled = (values[:, used] - values[:, used].mean(axis=0)) / scale[used]
    weights = np.zeros((len(tested), values.shape[1]))
    for place, one in enumerate(tested):
        targets = (labels == one).astype(int)
        n_folds = min(_MOST_FOLDS, *(len(np.unique(groups[targets == target])) for target in (0, 1)))
        if n_folds < 2:
            raise ValueError(
                f"Expected at least two cases of each class for inner folds, got {n_folds}: use more items "
                "(selection.split=train+val)."
            )
        folds = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed).split(scaled, targets, groups)
        search = GridSearchCV(
            LogisticRegression(max_iter=_MAX_ITERATIONS), {"C": _STRENGTHS}, scoring="neg_log_loss", cv=list(folds)
        ).fit(scaled, targets)
        _LOGGER.info("Logistic regression: C = %g by %d inner folds.", search.best_params_["C"], n_folds)
        weights[place, used] = search.best_estimator_.coef_[0]
    return weights


def mil_weights(rows: csr_matrix, bags: np.ndarray, labels: np.ndarray, tested: Sequence[int]) -> np.ndarray:
    """Returns the weight of every neuron in a linear multiple-instance classifier under max pooling.

    A bag's score is that of its highest row (its witness). Witnesses and weights are found in turns, as MI-SVM does
    (S. Andrews, I. Tsochantaridis and T. Hofmann, NeurIPS 2002), with logistic loss in place of the hinge and one
    witness for negative bags too (S. Ray and M. Craven, ICML 2005), until no witness changes. The first fit is on the
    maxima of bags. Neurons are divided by their largest value, so that weights compare.

    Args:
        rows: [n_rows, n_neurons] latents, none negative.
        bags: [n_rows] int, the bag of each row, from 0.
        labels: [n_bags] int.
        tested: classes, each against the rest.

    Returns:
        [n_tested, n_neurons] float64; 0 for silent neurons.
    """
    largest = rows.max(axis=0).toarray().ravel()
    scaled: Any = rows @ _diagonal(1 / np.where(largest > 0, largest, 1.0))
    order = np.argsort(bags, kind="stable")
    starts = np.searchsorted(bags[order], np.arange(len(labels)))
    scaled, bags = scaled[order], bags[order]
    bounds = pairwise([*starts.tolist(), len(bags)])
    maxima = np.stack([scaled[start:stop].max(axis=0).toarray().ravel() for start, stop in bounds])
    weights = np.zeros((len(tested), rows.shape[1]))  # pyright: ignore[reportOptionalSubscript]
    for place, one in enumerate(tested):
        targets = (labels == one).astype(int)
        model = LogisticRegression(max_iter=_MAX_ITERATIONS).fit(maxima, targets)
        witnesses = np.full(len(labels), -1)
        for n_rounds in range(1, _MOST_ROUNDS + 1):
            scores = scaled @ model.coef_[0]
            chosen = np.lexsort((-scores, bags))[starts]
            if (chosen == witnesses).all():
                _LOGGER.info("Max-pooled logistic regression: witnesses settled after %d rounds.", n_rounds)
                break
            witnesses = chosen
            model.fit(scaled[witnesses], targets)
        else:
            _LOGGER.warning("Max-pooled logistic regression: witnesses still change after %d rounds.", _MOST_ROUNDS)
        weights[place] = model.coef_[0]
    return weights


def stack_rows(pieces: Iterable[tuple[np.ndarray, SparseLatents]]) -> tuple[csr_matrix, np.ndarray]:
    """Returns the rows of all items as one matrix [n_rows, n_neurons], and the item of each [n_rows].

    Args:
        pieces: as `LatentSource.read` gives them.
    """
    read = list(pieces)
    latents = SparseLatents.cat([rows for _, rows in read])
    parts = (latents.values.numpy(), latents.neuron_ids.numpy(), latents.row_offsets.numpy())
    return csr_matrix(parts, shape=latents.shape), np.concatenate([codes for codes, _ in read])


def _diagonal(values: np.ndarray) -> csr_matrix:
    n = len(values)
    return csr_matrix((values, np.arange(n), np.arange(n + 1)), shape=(n, n))
