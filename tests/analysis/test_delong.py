import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from src.analysis.delong import delong


def literal(scores, is_positive, clusters):
    """Obuchowski's sums, pair by pair."""
    kernel = [(np.sign(values[is_positive][:, None] - values[~is_positive][None]) + 1) / 2 for values in scores]
    areas = [pairs.mean() for pairs in kernel]
    names = np.unique(clusters)
    of_positive, of_negative = clusters[is_positive], clusters[~is_positive]
    m, n = is_positive.sum(), (~is_positive).sum()
    up = [
        [(pairs.mean(axis=1) - area)[of_positive == one].sum() for one in names]
        for pairs, area in zip(kernel, areas, strict=True)
    ]
    down = [
        [(pairs.mean(axis=0) - area)[of_negative == one].sum() for one in names]
        for pairs, area in zip(kernel, areas, strict=True)
    ]
    up, down = np.array(up), np.array(down)
    i_10, i_01, i = len(np.unique(of_positive)), len(np.unique(of_negative)), len(names)
    s_10 = i_10 / ((i_10 - 1) * m) * up @ up.T
    s_01 = i_01 / ((i_01 - 1) * n) * down @ down.T
    s_11 = i / (i - 1) * up @ down.T
    return np.array(areas), s_10 / m + s_01 / n + (s_11 + s_11.T) / (m * n)


@pytest.mark.parametrize("is_clustered", [False, True])
def test_covariance_equals_the_literal_sums(is_clustered):
    rng = np.random.default_rng(0)
    is_positive = rng.random(60) < 0.4
    scores = np.round(rng.normal(size=(3, 60)) + is_positive * np.array([[2], [1], [0]]), 1)
    clusters = rng.integers(8, size=60) if is_clustered else np.arange(60)
    found = delong(scores, is_positive, clusters if is_clustered else None)
    areas, covariance = literal(scores, is_positive, clusters)
    np.testing.assert_allclose(found.areas, areas)
    np.testing.assert_allclose(found.areas, [roc_auc_score(is_positive, one) for one in scores])
    np.testing.assert_allclose(found.covariance, covariance, atol=1e-15)


def test_a_copied_slide_makes_patches_no_more_evidence():
    rng = np.random.default_rng(0)
    is_positive = np.arange(40) % 2 == 0
    scores = (rng.normal(size=40) + is_positive)[None]
    once = delong(scores, is_positive).covariance[0, 0]
    four = delong(np.tile(scores, 4), np.tile(is_positive, 4), np.tile(np.arange(40), 4)).covariance[0, 0]
    assert four == pytest.approx(once)
    assert delong(np.tile(scores, 4), np.tile(is_positive, 4)).covariance[0, 0] < once / 3


def test_differences_and_what_cannot_be_compared():
    rng = np.random.default_rng(1)
    is_positive = np.arange(200) % 2 == 0
    values = rng.normal(size=200) + is_positive
    found = delong(np.stack([values, values, rng.normal(size=200)]), is_positive)
    assert found.difference(0, 1) == (0.0, 0.0, 1.0)
    difference, error, p_value = found.difference(0, 2)
    assert difference / error > 3
    assert p_value < 0.001
    low, high = found.interval(0)
    assert low < found.areas[0] < high <= 1
    with pytest.raises(ValueError, match="Expected positives and negatives, got 3 and 0"):
        delong(np.zeros((1, 3)), np.ones(3, bool))
    with pytest.raises(ValueError, match="two clusters with positives"):
        delong(np.arange(3.0)[None], np.array([True, False, False]))
