import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    roc_auc_score,
)

from src.analysis.slide_metrics import METRICS, accuracy, auroc, average_precision, balanced_accuracy


def example(n_classes, n=40, seed=0):
    rng = np.random.default_rng(seed)
    probabilities = np.round(rng.dirichlet(np.ones(n_classes), size=n), 1)  # rounded, so that there are ties
    return probabilities, rng.integers(n_classes, size=n), rng.integers(0, 4, size=(6, n)).astype(float)


def test_two_classes_equal_sklearn_with_weights():
    probabilities, labels, weights = example(2)
    for row, weight in enumerate(weights):
        chosen = probabilities.argmax(axis=1)
        scores = probabilities[:, 1]
        expected = {
            "accuracy": accuracy_score(labels, chosen, sample_weight=weight),
            "balanced_accuracy": balanced_accuracy_score(labels, chosen, sample_weight=weight),
            "auroc": roc_auc_score(labels, scores, sample_weight=weight),
            "average_precision": average_precision_score(labels, scores, sample_weight=weight),
        }
        for name, metric in METRICS.items():
            assert metric(probabilities, labels, weights)[row] == pytest.approx(expected[name], rel=1e-12), name


def test_more_classes_are_averaged_one_against_the_rest():
    probabilities, labels, _ = example(3)
    once = np.ones((1, 40))
    areas = [roc_auc_score(labels == c, probabilities[:, c]) for c in range(3)]
    precisions = [average_precision_score(labels == c, probabilities[:, c]) for c in range(3)]
    assert auroc(probabilities, labels, once)[0] == pytest.approx(np.mean(areas))
    assert average_precision(probabilities, labels, once)[0] == pytest.approx(np.mean(precisions))


def test_one_class_has_no_area():
    probabilities = np.array([[0.2, 0.8], [0.6, 0.4]])
    once = np.ones((1, 2))
    for labels in (np.array([1, 1]), np.array([0, 0])):
        assert np.isnan(auroc(probabilities, labels, once))
        assert np.isnan(average_precision(probabilities, labels, once))
        assert accuracy(probabilities, labels, once) == 0.5
        assert balanced_accuracy(probabilities, labels, once) == 0.5
