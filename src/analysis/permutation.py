"""Labels dealt out anew: family-wise p-values by the largest statistic, and rankings of resampled items."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from src.analysis.stratified import Stratum, ranked_strata

# Labelings worked on at once, times columns: some tens of megabytes.
_VALUES_PER_CHUNK = 2**21
# A smaller variance of a group, in a column whose squares sum to 1, is rounding: the group is constant.
_ROUNDING = 1e-13

Kernel = Callable[[np.ndarray], np.ndarray]
"""Weights of the positive rows [n_labelings, n], the same rows' others being negative, to statistics [., n_columns]."""


def t_kernel(values: np.ndarray, strata: Sequence[np.ndarray], is_guarded: bool) -> Callable[..., np.ndarray]:
    """Returns what gives the t of `stratified_t` of many labelings at once, by products of matrices.

    Args:
        values: [n, n_columns].
        strata: the rows of each stratum.
        is_guarded: the smaller of Welch's and Student's t in size, as the larger p is taken; Welch's alone otherwise.
    """
    # Less a row first: what is constant within a stratum becomes 0 exactly.
    shifted = [values[rows].astype(np.float64) - values[rows[0]] for rows in strata]
    centred = [of - of.mean(axis=0) for of in shifted]
    scale = np.sqrt(sum((of * of).sum(axis=0) for of in centred))
    scale = np.where(scale > 0, scale, 1.0)
    centred = [of / scale for of in centred]
    squared = [of * of for of in centred]

    sums = [(of.sum(axis=0), of_squares.sum(axis=0)) for of, of_squares in zip(centred, squared, strict=True)]

    def statistics(positive: np.ndarray, counts: np.ndarray | None = None) -> np.ndarray:
        drawn = positive if counts is None else positive * counts
        difference = spread = pooled = total = n_free = 0.0
        for rows, of, of_squares, of_all in zip(strata, centred, squared, sums, strict=True):
            # The other group is all less this one: half of the products.
            group = drawn[:, rows]
            n, all_sums, all_squares = float(len(rows)), *of_all
            if counts is not None:
                drawn_rows = counts[:, rows]
                n = drawn_rows.sum(axis=1)[:, None]
                all_sums, all_squares = drawn_rows @ of, drawn_rows @ of_squares
            n_1 = group.sum(axis=1)[:, None]
            n_0 = n - n_1
            usable = (n_1 > 1) & (n_0 > 1)
            n_1, n_0 = np.where(usable, n_1, 2.0), np.where(usable, n_0, 2.0)
            sum_1, square_1 = group @ of, group @ of_squares
            mean_1, mean_0 = sum_1 / n_1, (all_sums - sum_1) / n_0
            variance_1 = _without_rounding((square_1 - n_1 * mean_1**2) / (n_1 - 1))
            variance_0 = _without_rounding((all_squares - square_1 - n_0 * mean_0**2) / (n_0 - 1))
            weight = np.where(usable, n_1 * n_0 / (n_1 + n_0), 0.0)
            difference = difference + weight * (mean_1 - mean_0)
            spread = spread + weight**2 * (variance_1 / n_1 + variance_0 / n_0)
            pooled = pooled + usable * ((n_1 - 1) * variance_1 + (n_0 - 1) * variance_0)
            total, n_free = total + weight, n_free + usable * (n_1 + n_0 - 2)
        if is_guarded:
            spread = np.maximum(spread, pooled / np.maximum(n_free, 1) * total)
        with np.errstate(divide="ignore", invalid="ignore"):
            return difference / np.sqrt(spread)

    return statistics


def _without_rounding(variances: np.ndarray) -> np.ndarray:
    """Sets what is too small to be a variance to 0: sums of squares leave that much of a constant group."""
    return np.where(variances > _ROUNDING, variances, 0.0)


def rank_kernel(values: np.ndarray, strata: Sequence[np.ndarray]) -> Kernel:
    """Returns what gives the statistic of `rank_test` of many labelings at once."""
    nobody = np.empty(0, np.int64)
    ranked = [
        (rows, ranks - (len(rows) + 1) / 2, tie_factor)
        for rows, (ranks, _, tie_factor) in zip(
            strata, ranked_strata(values, [Stratum(rows, nobody) for rows in strata]), strict=True
        )
    ]

    def statistics(positive: np.ndarray) -> np.ndarray:
        deviation = variance = 0.0
        for rows, centred, tie_factor in ranked:
            n_1 = positive[:, rows].sum(axis=1)[:, None]
            weight = 1 / (len(rows) + 1)
            deviation = deviation + weight * (positive[:, rows] @ centred)
            variance = variance + weight**2 * n_1 * (len(rows) - n_1) * tie_factor
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(variance > 0, deviation / np.sqrt(variance), np.nan)

    return statistics


def max_t_p_values(
    kernels: Sequence[Kernel],
    tested: Sequence[int],
    labels: np.ndarray,
    strata: np.ndarray,
    blocks: np.ndarray,
    n_permutations: int,
    seed: int,
    two_sided: bool = False,
) -> np.ndarray:
    """Returns family-wise p-values: how often the largest statistic of all tests reaches a test's own by chance.

    P. H. Westfall and S. S. Young, "Resampling-Based Multiple Testing" (1993), single-step max-T; (1 + hits) / (1 +
    permutations), so that no p is 0 (B. Phipson and G. K. Smyth, Stat. Appl. Genet. Mol. Biol. 9, 2010). Labels move
    within strata and with their block, so that the confounder and a case's resemblance to itself stay.

    Args:
        kernels: of each test, gives the statistics [., n_columns] of labelings.
        tested: the class of each test, against the rest.
        labels: [n] int.
        strata: [n] int.
        blocks: [n] int, rows whose labels move together.
        n_permutations: how many labelings.
        seed: of the permutations.
        two_sided: by size.

    Returns:
        [n_tests, n_columns], NaN where there is no statistic.
    """

    def statistics(labelings: np.ndarray) -> np.ndarray:
        pairs = zip(kernels, tested, strict=True)
        found = np.stack([kernel((labelings == one).astype(np.float64)) for kernel, one in pairs])
        return np.abs(found) if two_sided else found

    own = statistics(labels[None])[:, 0]
    rng = np.random.default_rng(seed)
    chunk = max(1, _VALUES_PER_CHUNK // own.shape[1])
    largest = np.empty(n_permutations)
    for start in range(0, n_permutations, chunk):
        dealt = permute(labels, strata, blocks, min(chunk, n_permutations - start), rng)
        largest[start : start + len(dealt)] = np.fmax.reduce(statistics(dealt), axis=(0, 2), initial=-np.inf)
    # Sums differ in their last digits by their order, and a labeling that is the true one must count as a hit.
    reached = own - 1e-9 * np.abs(np.where(np.isfinite(own), own, 0))
    hits = n_permutations - np.searchsorted(np.sort(largest), reached)
    return np.where(np.isnan(own), np.nan, (1 + hits) / (1 + n_permutations))


def permute(labels: np.ndarray, strata: np.ndarray, blocks: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Deals labels out anew, within strata and block by block, [n, n_rows].

    A block whose rows differ in label or stratum passes on its highest label, and moves within its first row's stratum.

    Args:
        labels: [n_rows] int.
        strata: [n_rows] int.
        blocks: [n_rows] int, from 0.
        n: how many times.
        rng: of the permutations.
    """
    _, first, codes = np.unique(blocks, return_index=True, return_inverse=True)
    of_blocks = np.full(len(first), labels.min())
    np.maximum.at(of_blocks, codes, labels)
    block_strata = strata[first]
    dealt = np.empty((n, len(first)), labels.dtype)
    for stratum in np.unique(block_strata):
        inside = np.flatnonzero(block_strata == stratum)
        dealt[:, inside] = rng.permuted(np.tile(of_blocks[inside], (n, 1)), axis=1)
    return dealt[:, codes]


def bootstrap_statistics(
    kernel: Callable[[np.ndarray, np.ndarray], np.ndarray],
    is_positive: np.ndarray,
    strata: np.ndarray,
    n_columns: int,
    n_draws: int,
    seed: int,
) -> Iterator[np.ndarray]:
    """Yields the statistics [n_some, n_columns] of rows drawn with replacement, within each stratum and group.

    B. Efron, "Bootstrap methods: another look at the jackknife", Annals of Statistics 7 (1979).

    Args:
        kernel: of `t_kernel`.
        is_positive: [n] bool.
        strata: [n] int.
        n_columns: of the values.
        n_draws: how many draws.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    chunk = max(1, _VALUES_PER_CHUNK // n_columns)
    positive = is_positive.astype(np.float64)[None]
    for start in range(0, n_draws, chunk):
        counts = np.zeros((min(chunk, n_draws - start), len(is_positive)))
        for stratum in np.unique(strata):
            for group in (is_positive, ~is_positive):
                rows = np.flatnonzero((strata == stratum) & group)
                if len(rows):
                    counts[:, rows] = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), len(counts))
        yield kernel(np.repeat(positive, len(counts), axis=0), counts)
