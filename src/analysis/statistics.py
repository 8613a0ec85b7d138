"""Two-sample statistics of many neurons at once, in float64: one column a neuron, one row a slide or case."""

import numpy as np
from scipy import stats

# Columns ranked at a time, so that ranks of thousands of slides stay within some tens of megabytes.
_COLUMNS_PER_CHUNK = 512


def t_test(first: np.ndarray, second: np.ndarray, equal_variances: bool) -> tuple[np.ndarray, np.ndarray]:
    """Tests whether the mean of the first group is greater, as `scipy.stats.ttest_ind(alternative="greater")`.

    Welch's test (B. L. Welch, "The generalization of 'Student's' problem when several different population variances
    are involved", Biometrika 34, 1947) or, under one common variance, Student's ("The probable error of a mean", 1908).
    As in scipy, two groups of different constants give an infinite statistic, and of equal ones NaN.

    Args:
        first: [n_first, n_columns], n_first >= 2.
        second: [n_second, n_columns], n_second >= 2.
        equal_variances: Student's test in place of Welch's.

    Returns:
        The statistic t and the one-sided p, both [n_columns] float64.

    Raises:
        ValueError: when a group has fewer than two rows.
    """
    (mean_1, variance_1), (mean_2, variance_2) = _moments(first), _moments(second)
    of_first, of_second = (mean_1, np.sqrt(variance_1), len(first)), (mean_2, np.sqrt(variance_2), len(second))
    tested = stats.ttest_ind_from_stats(*of_first, *of_second, equal_var=equal_variances, alternative="greater")
    return tested.statistic, tested.pvalue


def hedges_g(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Returns the standardised difference of means [n_columns], NaN where both groups are constant.

    Cohen's d with the pooled standard deviation, times the small-sample factor 1 - 3 / (4 (n_1 + n_2) - 9) of
    L. V. Hedges, "Distribution theory for Glass's estimator of effect size", J. Educational Statistics 6 (1981).

    Args:
        first: [n_first, n_columns], n_first >= 2.
        second: [n_second, n_columns], n_second >= 2.

    Raises:
        ValueError: when a group has fewer than two rows.
    """
    (mean_1, variance_1), (mean_2, variance_2) = _moments(first), _moments(second)
    n_1, n_2 = len(first), len(second)
    deviation = np.sqrt(((n_1 - 1) * variance_1 + (n_2 - 1) * variance_2) / (n_1 + n_2 - 2))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(deviation > 0, (1 - 3 / (4 * (n_1 + n_2) - 9)) * (mean_1 - mean_2) / deviation, np.nan)


def auroc_by_column(values: np.ndarray, is_positive: np.ndarray) -> np.ndarray:
    """Returns the area under the ROC curve of each column as a score, ties counting half.

    The Mann-Whitney statistic over the number of pairs (Hanley and McNeil, Radiology 143, 1982, section "The meaning
    of the area"): ranks with ties averaged, so a constant column has 0.5.

    Args:
        values: [n, n_columns].
        is_positive: [n] bool.

    Returns:
        [n_columns] float64, NaN when there is one class only.
    """
    n_positive = int(is_positive.sum())
    n_pairs = n_positive * (len(values) - n_positive)
    areas = np.full(values.shape[1], np.nan)
    if n_pairs == 0:
        return areas
    for start in range(0, values.shape[1], _COLUMNS_PER_CHUNK):
        ranks = stats.rankdata(values[:, start : start + _COLUMNS_PER_CHUNK], axis=0)
        rank_sum = ranks[is_positive].sum(axis=0)
        areas[start : start + _COLUMNS_PER_CHUNK] = (rank_sum - n_positive * (n_positive + 1) / 2) / n_pairs
    return areas


def benjamini_hochberg(p_values: np.ndarray) -> np.ndarray:
    """Returns q-values: the smallest false discovery rate at which each test is significant.

    Y. Benjamini and Y. Hochberg, J. R. Statist. Soc. B 57 (1995), through `scipy.stats.false_discovery_control`. A NaN
    is a test that could not be made: it stays NaN and does not count among the tests.

    Args:
        p_values: any shape; all of them are one family.
    """
    q_values = np.full(p_values.shape, np.nan)
    tested = ~np.isnan(p_values)
    if tested.any():
        q_values[tested] = stats.false_discovery_control(p_values[tested])
    return q_values


def _moments(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and unbiased variance of each column, in float64; a constant column has variance 0 exactly."""
    if len(values) < 2:
        raise ValueError(
            f"Expected at least two items or cases in each class to compare means, got {len(values)}: "
            "use more train items (selection.split=train+val) or another split."
        )
    values = values.astype(np.float64)
    # Subtracting a row first keeps constants exact whatever their value, and large offsets harmless.
    shifted = values - values[:1]
    mean = shifted.mean(axis=0)
    return mean + values[0], ((shifted - mean) ** 2).sum(axis=0) / (len(values) - 1)
