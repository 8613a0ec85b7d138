import numpy as np
import pytest
from sklearn import metrics as sk

from src.analysis.probe_metrics import NAMES, OUTCOMES, count_confusions, score_classes, score_overall

CLASSES = ["a", "b", "c"]


def predictions(n=60, n_classes=3, seed=0):
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, n_classes, n)
    scores = rng.random((n, n_classes)) + 0.7 * (targets[:, None] == np.arange(n_classes))
    return scores / scores.sum(1, keepdims=True), targets


def test_exclusive_classes_as_scikit_learn():
    probabilities, targets = predictions()
    called = probabilities.argmax(1)
    scores = score_overall(probabilities, targets, CLASSES)
    assert scores["accuracy"] == pytest.approx(sk.accuracy_score(targets, called))
    assert scores["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(targets, called))
    assert scores["f1"] == pytest.approx(sk.f1_score(targets, called, average="macro"))
    assert scores["auroc"] == pytest.approx(sk.roc_auc_score(targets, probabilities, multi_class="ovr"))
    table = score_classes(probabilities, targets, CLASSES).set_index("class")
    report = sk.classification_report(targets, called, target_names=CLASSES, output_dict=True)
    for name in CLASSES:
        for ours, theirs in (("recall", "recall"), ("precision", "precision"), ("f1", "f1-score")):
            assert table.loc[name, ours] == pytest.approx(report[name][theirs])
        is_member = targets == CLASSES.index(name)
        area = sk.average_precision_score(is_member, probabilities[:, CLASSES.index(name)])
        assert table.loc[name, "average_precision"] == pytest.approx(area)
    counts = count_confusions(probabilities, targets, CLASSES)
    np.testing.assert_array_equal(counts, sk.confusion_matrix(targets, called))


def test_of_two_classes_the_last_is_positive():
    probabilities, targets = predictions(n_classes=2)
    scores = score_overall(probabilities, targets, CLASSES[:2])
    assert scores["f1"] == pytest.approx(sk.f1_score(targets, probabilities.argmax(1)))
    assert scores["auroc"] == pytest.approx(sk.roc_auc_score(targets, probabilities[:, 1]))


def test_labels_are_scored_where_they_are_known():
    rng = np.random.default_rng(0)
    probabilities, targets = rng.random((40, 2)), (rng.random((40, 2)) < 0.4).astype(float)
    targets[:10, 0] = np.nan
    table = score_classes(probabilities, targets, ["x", "y"], True).set_index("class")
    called = probabilities[10:, 0] >= 0.5
    assert table.loc["x", "n_items"] == 30
    assert table.loc["x", "accuracy"] == pytest.approx(sk.accuracy_score(targets[10:, 0], called))
    assert table.loc["x", "balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(targets[10:, 0], called))
    assert table.loc["x", "auroc"] == pytest.approx(sk.roc_auc_score(targets[10:, 0], probabilities[10:, 0]))
    overall = score_overall(probabilities, targets, ["x", "y"], True)
    assert overall["f1"] == pytest.approx(table["f1"].mean())
    counts = count_confusions(probabilities, targets, ["x", "y"], True)
    assert list(counts) == list(OUTCOMES)
    assert counts.sum(axis=1).tolist() == [30, 40]


def test_what_items_do_not_define_is_nan():
    scores = score_overall(np.array([[0.2, 0.8], [0.4, 0.6]]), np.array([1, 1]), CLASSES[:2])
    assert (scores["accuracy"], scores["f1"]) == (1.0, 1.0)
    assert np.isnan(scores["auroc"])
    nobody = score_overall(np.full((2, 1), 0.5), np.full((2, 1), np.nan), ["x"], True)
    assert set(nobody) == set(NAMES)
    assert all(np.isnan(value) for value in nobody.values())
