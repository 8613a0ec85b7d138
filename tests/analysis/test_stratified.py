import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from src.analysis.permutation import rank_kernel, t_kernel
from src.analysis.stratified import (
    Stratum,
    rank_test,
    stratified_auroc,
    stratified_g,
    stratified_t,
    usable_strata,
)


def whole(first, second):
    """Two groups as one stratum."""
    n = len(first)
    return np.concatenate([first, second]), [Stratum(np.arange(n), n + np.arange(len(second)))]


@pytest.fixture
def groups():
    rng = np.random.default_rng(0)
    return rng.gamma(1.0, size=(9, 40)), 1.3 * rng.gamma(1.0, size=(14, 40))


@pytest.fixture
def two_centres():
    """Values with a shift of 3 between centres, of which one has most positive rows; column 0 has a label effect."""
    rng = np.random.default_rng(1)
    strata = np.repeat([0, 1], 20)
    is_positive = np.concatenate([np.arange(20) < 4, np.arange(20) < 16])
    values = rng.normal(size=(40, 30)) + 3 * strata[:, None]
    values[:, 0] += 1.5 * is_positive
    return values, is_positive, strata


@pytest.mark.parametrize("alternative", ["greater", "two-sided"])
@pytest.mark.parametrize("equal_variances", [False, True])
def test_one_stratum_equals_a_scipy_call_for_each_column(groups, equal_variances, alternative):
    statistic, p_value = stratified_t(*whole(*groups), equal_variances, alternative)
    for column in range(40):
        pair = groups[0][:, column], groups[1][:, column]
        expected = stats.ttest_ind(*pair, equal_var=equal_variances, alternative=alternative)
        assert statistic[column] == pytest.approx(expected.statistic, rel=1e-12)
        assert p_value[column] == pytest.approx(expected.pvalue, rel=1e-9)


def test_constants():
    first = np.array([[0.1, 0.1, 1.0], [0.1, 0.1, 1.0], [0.1, 0.1, 1.0]])
    second = np.array([[0.1, 0.3, 0.0], [0.1, 0.3, 0.5]])
    statistic, p_value = stratified_t(*whole(first, second), equal_variances=False)
    assert np.isnan(statistic[0])
    assert np.isnan(p_value[0])
    assert statistic[1] == -np.inf
    assert p_value[1] == 1
    # One constant group: t = (1 - 0.25) / sqrt(0.125 / 2), with the other group's one degree of freedom.
    assert statistic[2] == pytest.approx(3.0)
    assert p_value[2] == pytest.approx(stats.t.sf(3.0, 1))
    assert np.isnan(rank_test(*whole(first, second))[0][0])


def test_t_is_stable_under_a_large_offset(groups):
    first, second = (np.round(group * 1024) / 1024 for group in groups)  # so that the offset itself loses nothing
    near, far = (stratified_t(*whole(first + offset, second + offset), False)[0] for offset in (0, 2**16))
    np.testing.assert_allclose(far, near, rtol=1e-8)


def test_common_variance_equals_the_contrast_of_a_linear_model_of_cell_means(two_centres):
    values, is_positive, strata = two_centres
    statistic, p_value = stratified_t(values, usable_strata(is_positive, strata)[0], equal_variances=True)
    cells = [(strata == one) & (is_positive == sign) for one in (0, 1) for sign in (True, False)]
    design = np.stack(cells, axis=1).astype(float)
    means, residuals, *_ = np.linalg.lstsq(design, values, rcond=None)
    # 16 x 4 / 20 in both centres: equal weights.
    contrast = np.array([0.5, -0.5, 0.5, -0.5])
    error = np.sqrt(residuals / 36 * (contrast @ np.linalg.inv(design.T @ design) @ contrast))
    np.testing.assert_allclose(statistic, contrast @ means / error, rtol=1e-9)
    np.testing.assert_allclose(p_value, stats.t.sf(contrast @ means / error, 36), rtol=1e-8)


def test_what_marks_the_centre_is_found_only_without_strata(two_centres):
    values, is_positive, strata = two_centres
    naive = stratified_t(values, usable_strata(is_positive, np.zeros(40))[0], False)[1]
    within = stratified_t(values, usable_strata(is_positive, strata)[0], False)[1]
    assert (naive < 0.05).all()
    assert within[0] < 0.01
    assert (within[1:] < 0.05).mean() < 0.2


def test_one_stratum_of_ranks_is_mann_whitney_and_several_van_elteren(groups, two_centres):
    statistic, p_value = rank_test(*whole(*groups))
    expected = stats.mannwhitneyu(*groups, alternative="greater", method="asymptotic", use_continuity=False)
    np.testing.assert_allclose(p_value, expected.pvalue, rtol=1e-9)
    values, is_positive, strata = two_centres
    values = np.round(values, 1)  # ties
    statistic, _ = rank_test(values, usable_strata(is_positive, strata)[0])
    deviation = variance = 0.0
    for code in (0, 1):
        inside = strata == code
        ranks = stats.rankdata(values[inside], axis=0)
        n, n_1 = inside.sum(), is_positive[inside].sum()
        counts = [np.unique(column, return_counts=True)[1] for column in values[inside].T]
        ties = np.array([(of**3 - of).sum() for of in counts])
        deviation += (ranks[is_positive[inside]].sum(axis=0) - n_1 * (n + 1) / 2) / (n + 1)
        variance += n_1 * (n - n_1) / 12 * (n + 1 - ties / (n * (n - 1))) / (n + 1) ** 2
    np.testing.assert_allclose(statistic, deviation / np.sqrt(variance), rtol=1e-9)


def test_g_by_hand_and_its_interval():
    # Means 2 and 5, both variances 1: d = -3; 3 + 3 rows: factor 1 - 3 / 15 = 0.8; variance 6 / 9 + 2.4^2 / 12.
    first, second = np.array([[1.0], [2.0], [3.0]]), np.array([[4.0], [5.0], [6.0]])
    effect, low, high = (column[0] for column in stratified_g(*whole(first, second)))
    assert effect == pytest.approx(-2.4)
    assert (high - low) / 2 == pytest.approx(1.959964 * np.sqrt(6 / 9 + 2.4**2 / 12))
    assert np.isnan(stratified_g(*whole(np.ones((2, 1)), np.zeros((2, 1))))[0][0])


def test_auroc_counts_pairs_within_strata(two_centres):
    values, is_positive, strata = two_centres
    expected = [
        np.average([roc_auc_score(is_positive[strata == one], column[strata == one]) for one in (0, 1)])
        for column in values.T  # both centres hold 16 x 4 pairs
    ]
    np.testing.assert_allclose(stratified_auroc(values, usable_strata(is_positive, strata)[0]), expected)


def test_strata_of_one_class_are_left_out_and_if_all_are_it_is_an_error(two_centres):
    _, is_positive, strata = two_centres
    strata = strata.copy()
    strata[-2:] = 2  # negative rows only
    kept, left_out = usable_strata(is_positive, strata)
    assert (len(kept), left_out) == (2, [2])
    with pytest.raises(ValueError, match=r"stratum of selection.adjust_for with at least 2 of each class, got none"):
        usable_strata(is_positive, is_positive.astype(int))


@pytest.mark.parametrize("is_guarded", [False, True])
def test_many_labelings_at_once_give_what_each_gives(two_centres, is_guarded):
    values, is_positive, strata = two_centres
    usable, _ = usable_strata(is_positive, strata)
    rows = [np.concatenate(stratum) for stratum in usable]
    rng = np.random.default_rng(0)
    labelings = np.stack([is_positive, *(rng.permutation(is_positive) for _ in range(3))])
    t, ranks = t_kernel(values, rows, is_guarded)(labelings.astype(float)), rank_kernel(values, rows)(labelings * 1.0)
    for labeling, of_t, of_ranks in zip(labelings, t, ranks, strict=True):
        strata_of = usable_strata(labeling, strata)[0]
        expected = stratified_t(values, strata_of, False)[0]
        if is_guarded:
            pooled = stratified_t(values, strata_of, True)[0]
            expected = np.where(np.abs(pooled) < np.abs(expected), pooled, expected)
        np.testing.assert_allclose(of_t, expected, rtol=1e-8)
        np.testing.assert_allclose(of_ranks, rank_test(values, strata_of)[0], rtol=1e-9)


def test_drawn_rows_count_as_often_as_they_were_drawn(two_centres):
    values, is_positive, strata = two_centres
    counts = np.random.default_rng(0).multinomial(40, np.full(40, 1 / 40), size=2).astype(float)
    rows = [np.flatnonzero(strata == one) for one in (0, 1)]
    found = t_kernel(values, rows, False)(np.repeat(is_positive[None] * 1.0, 2, axis=0), counts)
    for draw, of_draw in zip(counts.astype(int), found, strict=True):
        drawn = np.repeat(np.arange(40), draw)
        expected = stratified_t(values[drawn], usable_strata(is_positive[drawn], strata[drawn])[0], False)[0]
        np.testing.assert_allclose(of_draw, expected, rtol=1e-8)
