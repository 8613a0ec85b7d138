import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from src.analysis.statistics import auroc_by_column, benjamini_hochberg, hedges_g, t_test


@pytest.fixture
def groups():
    rng = np.random.default_rng(0)
    return rng.gamma(1.0, size=(9, 40)), 1.3 * rng.gamma(1.0, size=(14, 40))


@pytest.mark.parametrize("equal_variances", [False, True])
def test_t_equals_a_scipy_call_for_each_neuron(groups, equal_variances):
    statistic, p_value = t_test(*groups, equal_variances)
    for column in range(40):
        pair = groups[0][:, column], groups[1][:, column]
        greater = stats.ttest_ind(*pair, equal_var=equal_variances, alternative="greater")
        assert statistic[column] == pytest.approx(greater.statistic, rel=1e-12)
        assert p_value[column] == pytest.approx(greater.pvalue, rel=1e-9)


def test_welch_of_constants():
    first = np.array([[0.1, 0.1, 1.0], [0.1, 0.1, 1.0], [0.1, 0.1, 1.0]])
    second = np.array([[0.1, 0.3, 0.0], [0.1, 0.3, 0.5]])
    statistic, p_value = t_test(first, second, equal_variances=False)
    assert np.isnan(statistic[0])
    assert np.isnan(p_value[0])
    assert statistic[1] == -np.inf
    assert p_value[1] == 1
    # One constant group: t = (1 - 0.25) / sqrt(0.125 / 2), with the other group's one degree of freedom.
    assert statistic[2] == pytest.approx(3.0)
    assert p_value[2] == pytest.approx(stats.t.sf(3.0, 1))


def test_t_is_stable_under_a_large_offset(groups):
    first, second = (np.round(group * 1024) / 1024 for group in groups)  # so that the offset itself loses nothing
    near, far = (t_test(first + offset, second + offset, equal_variances=False)[0] for offset in (0, 2**16))
    np.testing.assert_allclose(far, near, rtol=1e-8)


def test_too_small_groups_are_refused(groups):
    with pytest.raises(ValueError, match=r"at least two items or cases in each class .* got 1"):
        t_test(groups[0][:1], groups[1], equal_variances=False)


def test_hedges_g_by_hand():
    # Means 2 and 5, both variances 1: d = -3; 3 + 3 rows: factor 1 - 3 / 15 = 0.8.
    first, second = np.array([[1.0], [2.0], [3.0]]), np.array([[4.0], [5.0], [6.0]])
    assert hedges_g(first, second)[0] == pytest.approx(-2.4)
    assert np.isnan(hedges_g(np.ones((2, 1)), np.zeros((2, 1)))[0])


def test_auroc_equals_sklearn_with_ties_and_constants():
    rng = np.random.default_rng(1)
    values = rng.integers(0, 4, size=(30, 700)).astype(np.float32)
    values[:, 5] = 2.0
    is_positive = rng.random(30) < 0.4
    areas = auroc_by_column(values, is_positive)
    np.testing.assert_allclose(areas, [roc_auc_score(is_positive, column) for column in values.T], rtol=1e-12)
    assert areas[5] == 0.5


def test_auroc_of_one_class_is_nan():
    assert np.isnan(auroc_by_column(np.ones((3, 2)), np.zeros(3, dtype=bool))).all()


def test_benjamini_hochberg_by_hand_and_without_untestable():
    # Sorted p x 4 / rank: 0.04, 0.06, 0.08, 0.5; each no larger than the next.
    q_values = benjamini_hochberg(np.array([0.03, np.nan, 0.01, 0.5, 0.06]))
    np.testing.assert_allclose(q_values, [0.06, np.nan, 0.04, 0.5, 0.08])
    assert np.isnan(benjamini_hochberg(np.array([np.nan]))).all()


@pytest.mark.golden
def test_welch_follows_the_reference(golden_dir):
    """The reference computes in float32, so its csv is met at float32 precision and its float64 run exactly."""
    folder = golden_dir / "stats" / "ttest"
    golden = np.load(folder / "ttest.npz")
    table = pd.read_csv(folder / "sae_analysis_t_test.csv").set_index("unit_id")
    labels = dict(zip(golden["slide_ids"].tolist(), golden["labels"].tolist(), strict=True))
    pooled = {
        label: np.stack(
            [
                golden[f"latents/{item_id}"].max(axis=0)
                for item_id in golden["train_ids"].tolist()
                if labels[item_id].lower() == label
            ]
        )
        for label in ("tumor", "normal")
    }
    for label, rows in pooled.items():
        np.testing.assert_array_equal(rows, golden[f"pooled/{label}"])
    statistic, p_value = t_test(pooled["tumor"], pooled["normal"], equal_variances=False)
    two_sided = 2 * np.where(
        statistic > 0, p_value, t_test(pooled["normal"], pooled["tumor"], equal_variances=False)[1]
    )
    unit_ids = np.arange(len(statistic))
    np.testing.assert_allclose(statistic, table.loc[unit_ids, "t_statistic"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(two_sided, table.loc[unit_ids, "p_value"], rtol=1e-4)
    np.testing.assert_allclose(statistic, golden["float64/t"], rtol=1e-10)
    np.testing.assert_allclose(two_sided, golden["float64/p"], rtol=1e-9)
