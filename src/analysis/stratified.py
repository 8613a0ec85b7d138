"""Two groups compared within strata (centres, scanners) and combined over them; one column a neuron."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from src.analysis.statistics import auroc_by_column, moments

_Z_95 = 1.959964


class Stratum(NamedTuple):
    """The rows of one stratum: of the positive group and of the other, as indices."""

    positive: np.ndarray
    negative: np.ndarray

    @property
    def weight(self) -> float:
        """n_1 n_0 / (n_1 + n_0), by which Cochran (1954) and Mantel and Haenszel (1959) weigh strata."""
        n_1, n_0 = len(self.positive), len(self.negative)
        return n_1 * n_0 / (n_1 + n_0)


def usable_strata(is_positive: np.ndarray, strata: np.ndarray, fewest: int = 2) -> tuple[list[Stratum], list[int]]:
    """Returns the strata that hold both groups, and the codes of those that say nothing and are left out.

    Args:
        is_positive: [n] bool.
        strata: [n] int, the stratum of each row.
        fewest: rows that each group needs in a stratum.

    Raises:
        ValueError: when no stratum holds both groups: the confounder and the label are then the same.
    """
    kept, left_out = [], []
    for code in np.unique(strata).tolist():
        inside = strata == code
        stratum = Stratum(np.flatnonzero(inside & is_positive), np.flatnonzero(inside & ~is_positive))
        if min(len(stratum.positive), len(stratum.negative)) >= fewest:
            kept.append(stratum)
        else:
            left_out.append(code)
    if not kept:
        raise ValueError(
            f"Expected a stratum of selection.adjust_for with at least {fewest} of each class, got none in "
            f"{len(left_out)}: label and confounder cannot be told apart. Use more items (selection.split=train+val), "
            "or another column."
        )
    return kept, left_out


def stratified_t(
    values: np.ndarray, strata: Sequence[Stratum], equal_variances: bool, alternative: str = "greater"
) -> tuple[np.ndarray, np.ndarray]:
    """Tests the mean difference within strata; with one stratum these are Welch's and Student's tests.

    Welch's test (Biometrika 34, 1947) trusts the variance of each group, Student's (1908) a common one.

    The differences of the strata are averaged with `Stratum.weight`. Their variance is either that of each group
    (Welch's test in every stratum, degrees of freedom by F. E. Satterthwaite, Biometrics Bulletin 2, 1946), or a common
    one of all groups and strata (a contrast in the linear model with a mean for each group of each stratum).

    Args:
        values: [n, n_columns].
        strata: of `usable_strata`.
        equal_variances: the common variance.
        alternative: `greater` or `two-sided`.

    Returns:
        The statistic and p, both [n_columns] float64; NaN where a column is constant within every stratum.
    """
    weights = np.array([stratum.weight for stratum in strata])
    total = weights.sum()
    difference = spread = pooled = degrees = np.zeros(values.shape[1])
    n_free = 0
    for stratum, weight in zip(strata, weights, strict=True):
        (mean_1, variance_1), (mean_0, variance_0) = (moments(values[rows]) for rows in stratum)
        n_1, n_0 = len(stratum.positive), len(stratum.negative)
        difference = difference + weight * (mean_1 - mean_0) / total
        share_1, share_0 = variance_1 / n_1, variance_0 / n_0
        spread = spread + (weight / total) ** 2 * (share_1 + share_0)
        degrees = degrees + (weight / total) ** 4 * (share_1**2 / (n_1 - 1) + share_0**2 / (n_0 - 1))
        pooled = pooled + (n_1 - 1) * variance_1 + (n_0 - 1) * variance_0
        n_free += n_1 + n_0 - 2
    with np.errstate(divide="ignore", invalid="ignore"):
        if equal_variances:
            spread, freedom = pooled / n_free / total, np.full(len(pooled), float(n_free))
        else:
            freedom = spread**2 / degrees
        statistic = difference / np.sqrt(spread)
        freedom = np.where(np.isnan(freedom), 1.0, freedom)
        if alternative == "greater":
            return statistic, stats.t.sf(statistic, freedom)
        return statistic, 2 * stats.t.sf(np.abs(statistic), freedom)


def stratified_g(values: np.ndarray, strata: Sequence[Stratum]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the standardised mean difference and its 95 % interval, each [n_columns]; NaN where there is no spread.

    Cohen's d with one standard deviation pooled over groups and strata, times the small-sample factor
    1 - 3 / (4 f - 1), f the degrees of freedom, of L. V. Hedges, "Distribution theory for Glass's estimator of effect
    size", J. Educational Statistics 6 (1981); the strata's differences are averaged with `Stratum.weight`. The interval
    is the large-sample one of L. V. Hedges and I. Olkin, "Statistical Methods for Meta-Analysis" (1985), chapter 5:
    variance 1 / W + g^2 / (2 N), W the sum of the strata's weights. It assumes groups of about normal values, which
    maxima of sparse neurons are not: read it as the size of the uncertainty, not as a test.
    """
    weights = [stratum.weight for stratum in strata]
    difference, pooled = np.zeros(values.shape[1]), np.zeros(values.shape[1])
    n_rows = sum(len(rows) for stratum in strata for rows in stratum)
    n_free = n_rows - 2 * len(strata)
    for stratum, weight in zip(strata, weights, strict=True):
        (mean_1, variance_1), (mean_0, variance_0) = (moments(values[rows]) for rows in stratum)
        difference += weight * (mean_1 - mean_0) / sum(weights)
        pooled += (len(stratum.positive) - 1) * variance_1 + (len(stratum.negative) - 1) * variance_0
    with np.errstate(divide="ignore", invalid="ignore"):
        effect = np.where(pooled > 0, (1 - 3 / (4 * n_free - 1)) * difference / np.sqrt(pooled / n_free), np.nan)
    margin = _Z_95 * np.sqrt(1 / sum(weights) + effect**2 / (2 * n_rows))
    return effect, effect - margin, effect + margin


def stratified_auroc(values: np.ndarray, strata: Sequence[Stratum]) -> np.ndarray:
    """Returns the share of pairs within strata that a column orders right, ties counting half, [n_columns]."""
    pairs = np.array([len(stratum.positive) * len(stratum.negative) for stratum in strata], float)
    areas = [
        auroc_by_column(
            values[np.concatenate(stratum)], np.arange(len(np.concatenate(stratum))) < len(stratum.positive)
        )
        for stratum in strata
    ]
    return np.average(areas, axis=0, weights=pairs)


def rank_test(
    values: np.ndarray, strata: Sequence[Stratum], alternative: str = "greater"
) -> tuple[np.ndarray, np.ndarray]:
    """Tests with ranks: Mann and Whitney's test, over several strata van Elteren's.

    Each stratum's rank sum is compared with its expectation and weighed with 1 / (n + 1) (P. H. van Elteren, Bulletin
    of the International Statistical Institute 37, 1960); the normal approximation with the correction for ties, without
    one for continuity.

    Returns:
        The standardised statistic and p, both [n_columns]; NaN where all values of every stratum are tied.
    """
    deviation, variance = np.zeros(values.shape[1]), np.zeros(values.shape[1])
    for ranks, of_stratum, tie_factor in ranked_strata(values, strata):
        n_1, n = len(of_stratum.positive), len(ranks)
        weight = 1 / (n + 1)
        deviation += weight * (ranks[:n_1].sum(axis=0) - n_1 * (n + 1) / 2)
        variance += weight**2 * n_1 * (n - n_1) * tie_factor
    with np.errstate(divide="ignore", invalid="ignore"):
        statistic = np.where(variance > 0, deviation / np.sqrt(variance), np.nan)
    if alternative == "greater":
        return statistic, stats.norm.sf(statistic)
    return statistic, 2 * stats.norm.sf(np.abs(statistic))


def ranked_strata(values: np.ndarray, strata: Sequence[Stratum]) -> Iterator[tuple[np.ndarray, Stratum, np.ndarray]]:
    """Yields each stratum's ranks [n, n_columns], positive rows first, and the variance of a rank sum over n_1 n_0."""
    for stratum in strata:
        ranks = stats.rankdata(values[np.concatenate(stratum)], axis=0)
        n = len(ranks)
        # The variance of ranks is (n^2 - 1) / 12 less what ties take: sum(ranks^2) knows both.
        tie_factor = ((ranks - (n + 1) / 2) ** 2).sum(axis=0) / (n * (n - 1))
        yield ranks, stratum, tie_factor
