import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from src.analysis.cross_validation import describe_test_sets, fold_metrics, summarize


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
    return pd.DataFrame(rows, columns=["fold", "method", "slide_id", "case_id", "label", "prob_no", "prob_yes"])


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
    assert (summary["n_folds"], summary["n_slides"]) == (5, 100)
    assert min(areas) <= summary["fold_low"] < summary["mean"] < summary["fold_high"] <= max(areas)
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
    assert describe_test_sets(predict()) == "Each slide is tested in one fold."
    assert "One fold" in describe_test_sets(predict(n_folds=1))
    overlapping = pd.concat([predict(n_folds=2), predict(n_folds=1).assign(fold=1)[:3]])
    assert "overlap" in describe_test_sets(overlapping)


def test_label_without_a_probability_is_refused():
    with pytest.raises(ValueError, match=r"prob_<class> column for every label.*'maybe'"):
        fold_metrics(predict(n_folds=1).replace({"label": {"no": "maybe"}}))
