"""Statistics of many neurons at once, in float64: one column a neuron, one row a slide or case."""

import numpy as np
from scipy import stats

# Columns ranked at a time, so that ranks of thousands of slides stay within some tens of megabytes.
_COLUMNS_PER_CHUNK = 512


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


def moments(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and unbiased variance of each column, in float64; a constant column has variance 0 exactly.

    Raises:
        ValueError: when there are fewer than two rows.
    """
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
