"""Intervals and tests of areas under ROC curves, without resampling."""

from typing import NamedTuple

import numpy as np
from scipy import stats


class ClusteredAreas(NamedTuple):
    """AUROCs of methods [n_methods] and their covariance [n_methods, n_methods]."""

    areas: np.ndarray
    covariance: np.ndarray

    def interval(self, method: int, confidence: float = 0.95) -> tuple[float, float]:
        """Returns the normal interval of a method's area, cut to 0 and 1."""
        margin = stats.norm.ppf(0.5 + confidence / 2) * np.sqrt(self.covariance[method, method])
        return max(0.0, float(self.areas[method] - margin)), min(1.0, float(self.areas[method] + margin))

    def difference(self, first: int, second: int) -> tuple[float, float, float]:
        """Returns the difference of two areas, its standard error, and the two-sided p of no difference."""
        difference = float(self.areas[first] - self.areas[second])
        weights = np.zeros(len(self.areas))
        weights[first], weights[second] = 1, -1
        error = float(np.sqrt(max(weights @ self.covariance @ weights, 0.0)))
        if error == 0:
            return difference, error, 1.0 if difference == 0 else 0.0
        return difference, error, float(2 * stats.norm.sf(abs(difference) / error))


def delong(scores: np.ndarray, is_positive: np.ndarray, clusters: np.ndarray | None = None) -> ClusteredAreas:
    """Compares AUROCs of several scores on the same observations.

    E. R. DeLong, D. M. DeLong and D. L. Clarke-Pearson, Biometrics 44 (1988), with ranks as X. Sun and W. Xu, IEEE
    Signal Processing Letters 21 (2014); for observations in clusters, such as the patches of slides, the extension of
    N. A. Obuchowski, Biometrics 53 (1997), which is DeLong's where every cluster is one observation. It is a
    large-sample method: with a few clusters that hold positives, prefer the bootstrap.

    Args:
        scores: [n_methods, n].
        is_positive: [n] bool, both values occurring.
        clusters: [n] int; None: each observation by itself.

    Raises:
        ValueError: when observations are of one class, or fewer than two clusters hold one.
    """
    n_positive, n_negative = int(is_positive.sum()), int((~is_positive).sum())
    if min(n_positive, n_negative) == 0:
        raise ValueError(f"Expected positives and negatives, got {n_positive} and {n_negative}.")
    _, codes = np.unique(np.arange(len(is_positive)) if clusters is None else clusters, return_inverse=True)
    n_clusters = codes.max() + 1
    of_positive, of_negative = (np.bincount(codes[kind], minlength=n_clusters) for kind in (is_positive, ~is_positive))
    n_with = (of_positive > 0).sum(), (of_negative > 0).sum()
    if min(n_with) < 2:
        raise ValueError(f"Expected two clusters with positives and two with negatives, got {n_with}.")
    areas, deviations = [], []
    for values in scores:
        ranks = stats.rankdata(values)
        # The share of negatives below each positive, and of positives above each negative.
        above = (ranks[is_positive] - stats.rankdata(values[is_positive])) / n_negative
        below = 1 - (ranks[~is_positive] - stats.rankdata(values[~is_positive])) / n_positive
        area = above.mean()
        areas.append(area)
        deviations.append(
            (
                np.bincount(codes[is_positive], above, n_clusters) - of_positive * area,
                np.bincount(codes[~is_positive], below, n_clusters) - of_negative * area,
            )
        )
    up, down = (np.stack(parts) for parts in zip(*deviations, strict=True))
    covariance = (
        up @ up.T * n_with[0] / (n_with[0] - 1) / n_positive**2
        + down @ down.T * n_with[1] / (n_with[1] - 1) / n_negative**2
        + (up @ down.T + down @ up.T) * n_clusters / (n_clusters - 1) / (n_positive * n_negative)
    )
    return ClusteredAreas(np.array(areas), covariance)
