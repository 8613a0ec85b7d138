import numpy as np
import pytest
from sklearn.metrics import f1_score, roc_curve

from src.analysis.patch_metrics import (
    BAND_GRID,
    best_threshold,
    curve_bands,
    pointing_game,
    sensitivity_at,
    threshold_metrics,
)


@pytest.fixture
def scored():
    rng = np.random.default_rng(0)
    is_positive = rng.random(120) < 0.3
    return np.round(rng.normal(size=120) + is_positive, 1), is_positive, rng.integers(6, size=120)


def test_sensitivity_is_read_from_the_roc_curve(scored):
    scores, is_positive, _ = scored
    fpr, tpr, _ = roc_curve(is_positive, scores)
    for specificity in (0.5, 0.9, 0.95):
        expected = tpr[fpr <= 1 - specificity + 1e-12].max()
        assert sensitivity_at(scores, is_positive, np.ones((1, 120)), specificity) == pytest.approx(expected)
    weights = np.random.default_rng(1).integers(0, 3, size=(1, 120)).astype(float)
    drawn = np.repeat(np.arange(120), weights[0].astype(int))
    fpr, tpr, _ = roc_curve(is_positive[drawn], scores[drawn])
    expected = tpr[fpr <= 0.1 + 1e-12].max()
    assert sensitivity_at(scores, is_positive, weights, 0.9) == pytest.approx(expected)


def test_the_threshold_has_the_largest_f1(scored):
    scores, is_positive, slides = scored
    threshold = best_threshold(scores, is_positive)
    of_all = {value: f1_score(is_positive, scores >= value) for value in np.unique(scores)}
    assert of_all[threshold] == max(of_all.values())
    found = threshold_metrics(scores, is_positive, is_positive * 1.0, slides, threshold, np.ones((1, 6)))
    assert found["f1"] == pytest.approx(of_all[threshold])
    by_slide = [f1_score(is_positive[slides == one], scores[slides == one] >= threshold) for one in range(6)]
    assert found["dice"] == pytest.approx(np.mean(by_slide))  # of whole patches the two are the same
    assert np.isnan(best_threshold(scores, np.zeros(120, bool)))
    nothing = threshold_metrics(scores, is_positive, is_positive * 1.0, slides, np.nan, np.ones((2, 6)))
    assert np.isnan(nothing["f1"]).all()


def test_dice_weighs_patches_by_their_outlined_area():
    scores, covered = np.array([1.0, 1.0, 0.0, 1.0]), np.array([1.0, 0.25, 0.5, 0.0])
    slides = np.array([0, 0, 0, 1])
    found = threshold_metrics(scores, covered > 0.5, covered, slides, 0.5, np.ones((1, 2)))
    assert found["dice"] == pytest.approx(2 * 1.25 / (2 + 1.75))  # slide 1 has no outline


def test_pointing_game_counts_slides_and_splits_ties():
    scores = np.array([3.0, 1.0, 2.0, 2.0, 5.0, 0.0])
    is_positive = np.array([True, False, True, False, False, False])
    slides = np.array([0, 0, 1, 1, 2, 2])
    assert pointing_game(scores, is_positive, slides, np.ones((1, 3))) == pytest.approx((1 + 0.5) / 2)
    assert pointing_game(scores, is_positive, slides, np.array([[2.0, 1.0, 4.0]])) == pytest.approx(2.5 / 3)


def test_bands_hold_the_curve_of_the_sample_and_have_no_width_without_variation(scored):
    scores, is_positive, slides = scored
    same = np.ones((3, 6))
    roc, precision = curve_bands(scores, is_positive, slides, same)
    fpr, tpr, _ = roc_curve(is_positive, scores, drop_intermediate=False)
    np.testing.assert_allclose(roc[0], np.interp(BAND_GRID, fpr, tpr), atol=1e-9)
    np.testing.assert_array_equal(roc[0], roc[1])
    assert precision[0][-1] == pytest.approx(is_positive.sum() / (scores >= scores[is_positive].min()).sum())
