import numpy as np
from sklearn.metrics import roc_auc_score

from src.analysis.statistics import auroc_by_column, benjamini_hochberg


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
