import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import roc_auc_score

from src.analysis.cross_validation import describe_test_sets, fold_interval, fold_metrics, summarize


def predict(n_folds=5, n_cases=20, slides_per_case=1, seed=0, signal=1.0, shared=False):
    rng = np.random.default_rng(seed)
    rows = []
    for fold in range(n_folds):
        for case in range(n_cases):
            label = case % 2
            score = signal * (label - 0.5) + rng.normal()
            for slide in range(slides_per_case):
                name = f"{'' if shared else fold}c{case}"
                probability = 1 / (1 + np.exp(-score))
                rows.append((fold, "m", f"{name}_{slide}", name, ("no", "yes")[label], 1 - probability, probability))
    return pd.DataFrame(rows, columns=["fold", "method", "item_id", "case_id", "label", "prob_no", "prob_yes"])


def row(summary, metric="auroc"):
    return summary.set_index("metric").loc[metric]


def test_mean_and_spread_are_those_of_the_folds():
    predictions = predict()
    areas = [roc_auc_score(part["label"] == "yes", part["prob_yes"]) for _, part in predictions.groupby("fold")]
    np.testing.assert_allclose(fold_metrics(predictions)["auroc"], areas)
    summary = row(summarize(predictions, n_bootstrap=500))
    assert summary["mean"] == pytest.approx(np.mean(areas))
    assert summary["sd"] == pytest.approx(np.std(areas, ddof=1))
    assert summary["pooled"] == pytest.approx(roc_auc_score(predictions["label"] == "yes", predictions["prob_yes"]))
    assert (summary["n_folds"], summary["n_items"]) == (5, 100)
    reach = stats.t.ppf(0.975, 4) * np.std(areas, ddof=1) * np.sqrt(1 / 5 + 1 / 4)  # equal folds: 20 of 80 slides
    assert summary["fold_low"] == pytest.approx(np.mean(areas) - reach)
    assert summary["fold_high"] == pytest.approx(min(np.mean(areas) + reach, 1))
    assert summary["slide_low"] < summary["pooled"] < summary["slide_high"]


def test_slides_of_a_case_are_drawn_together():
    """Ten copies of every slide say nothing new: the interval stays that of the cases."""
    one, ten = (row(summarize(predict(slides_per_case=n), n_bootstrap=2000)) for n in (1, 10))
    assert ten["slide_high"] - ten["slide_low"] == pytest.approx(one["slide_high"] - one["slide_low"])


def test_interval_holds_the_truth_as_often_as_it_says():
    """The accuracy of predictions that are right with chance 0.8, in 95 % intervals over 60 cases."""
    rng = np.random.default_rng(0)
    held = 0
    for seed in range(100):
        predictions = predict(n_folds=1, n_cases=60)
        right = rng.random(60) < 0.8
        yes = (predictions["label"] == "yes").to_numpy() == right
        predictions["prob_yes"], predictions["prob_no"] = 1.0 * yes, 1.0 * ~yes
        summary = row(summarize(predictions, n_bootstrap=200, seed=seed), "accuracy")
        held += summary["slide_low"] <= 0.8 <= summary["slide_high"]
    assert 88 <= held <= 99  # of 100


def test_fold_interval_without_overlap_is_students():
    values = np.array([0.5, 0.55, 0.6, 0.52])
    student = stats.t.interval(0.9, 3, values.mean(), stats.sem(values))
    assert fold_interval(values, test_share=0, confidence=0.9) == pytest.approx(student)


def test_fold_interval_stays_where_metrics_are():
    assert fold_interval(np.array([0.9, 1.0]), 1.0) == (0.0, 1.0)
    assert fold_interval(np.array([1.0, 1.0, 1.0]), 0.5) == (1.0, 1.0)


def test_fold_interval_widens_with_the_test_slides_per_train_slide():
    predictions = predict()
    few, many = (row(summarize(predictions, 10, n_train=[n] * 5), "accuracy") for n in (400, 40))
    assert many["fold_high"] - many["fold_low"] > few["fold_high"] - few["fold_low"]


@pytest.mark.slow
def test_fold_interval_holds_the_truth_as_often_as_it_says():
    """The expected accuracy of a linear discriminant in five-fold cross-validation of 100 cases with 30 features."""
    rng, labels = np.random.default_rng(0), np.arange(100) % 2
    folds = []
    for _ in range(400):
        features = rng.normal(size=(100, 30)) + 1.5 * labels[:, None] * (np.arange(30) == 0)
        order, accuracies = rng.permutation(100), []
        for test in np.array_split(order, 5):
            train = np.setdiff1d(order, test)
            model = LinearDiscriminantAnalysis().fit(features[train], labels[train])
            accuracies.append(model.score(features[test], labels[test]))
        folds.append(np.array(accuracies))
    truth = np.mean(folds)
    held = [low <= truth <= high for low, high in (fold_interval(values, 1 / 4) for values in folds)]
    student = [low <= truth <= high for low, high in (fold_interval(values, 0) for values in folds)]
    assert 0.93 <= np.mean(held) <= 0.99
    assert np.mean(student) < 0.93  # what the correction is for


def test_fold_of_one_class_has_no_auroc_and_is_not_counted():
    predictions = predict(n_folds=3)
    predictions = predictions[(predictions["fold"] != 1) | (predictions["label"] == "yes")]
    assert fold_metrics(predictions).set_index("fold")["auroc"].isna().tolist() == [False, True, False]
    summary = summarize(predictions, n_bootstrap=100)
    assert row(summary)["n_folds"] == 2
    assert row(summary, "accuracy")["n_folds"] == 3


def test_one_fold_has_no_spread():
    summary = row(summarize(predict(n_folds=1), n_bootstrap=100))
    assert np.isnan(summary[["sd", "fold_low", "fold_high"]].to_numpy(float)).all()
    assert summary["slide_low"] < summary["slide_high"]


def test_same_seed_same_intervals():
    predictions = predict()
    pd.testing.assert_frame_equal(summarize(predictions, 100, seed=3), summarize(predictions, 100, seed=3))


def test_test_sets_are_called_what_they_are():
    assert "share a test set" in describe_test_sets(predict(shared=True))
    assert describe_test_sets(predict()) == "Each item is tested in one fold."
    assert "One fold" in describe_test_sets(predict(n_folds=1))
    overlapping = pd.concat([predict(n_folds=2), predict(n_folds=1).assign(fold=1)[:3]])
    assert "overlap" in describe_test_sets(overlapping)


def test_label_without_a_probability_is_refused():
    with pytest.raises(ValueError, match=r"prob_<class> column for every label.*'maybe'"):
        fold_metrics(predict(n_folds=1).replace({"label": {"no": "maybe"}}))
