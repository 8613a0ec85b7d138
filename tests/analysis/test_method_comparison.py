import numpy as np
import pandas as pd
import pytest
from scipy import stats

from src.analysis.cross_validation import pooled_resamples, summarize
from src.analysis.method_comparison import bootstrap_p, compare_methods, corrected_t_test


def predict(signals, n_folds=5, n_cases=30, seed=0, n_repeats=1):
    """Methods with scores of different strength on the same items; their noise is partly shared."""
    rng = np.random.default_rng(seed)
    rows = []
    for repeat in range(n_repeats):
        folds = rng.permutation(n_folds * n_cases) % n_folds
        for item, fold in enumerate(folds):
            label = item % 2
            shared = rng.normal()
            for method, signal in signals.items():
                probability = 1 / (1 + np.exp(-(signal * (label - 0.5) + shared + 0.3 * rng.normal())))
                named = (method, f"i{item}", f"c{item}", ("no", "yes")[label], 1 - probability, probability)
                rows.append((repeat, fold, *named))
    columns = ["repeat", "fold", "method", "item_id", "case_id", "label", "prob_no", "prob_yes"]
    table = pd.DataFrame(rows, columns=columns)
    return table if n_repeats > 1 else table.drop(columns="repeat")


def test_a_better_method_is_found_by_every_test_and_an_equal_one_by_none():
    table = compare_methods(predict({"good": 3.0, "bad": 0.5, "bad_too": 0.5}), 500)
    compared = table.set_index(["metric", "method", "other"]).sort_index()
    better, equal = compared.loc[("auroc", "good", "bad")], compared.loc[("auroc", "bad", "bad_too")]
    assert better["difference"] > 0.1
    assert 0 < better["slide_low"] < better["pooled_difference"] < better["slide_high"]
    assert max(better[["p_folds", "p_slides", "p_delong"]]) < 0.02
    assert min(equal[["p_folds", "p_slides", "p_delong"]]) > 0.05
    assert all(better[f"q_{test}"] >= better[f"p_{test}"] for test in ("folds", "slides", "delong"))
    assert compared.loc["accuracy", "p_delong"].isna().all()


def test_a_method_equals_itself():
    predictions = predict({"one": 1.0})
    twins = pd.concat([predictions, predictions.assign(method="twin")])
    compared = compare_methods(twins, 200)
    assert (compared["difference"] == 0).all()
    assert (compared[["p_folds", "p_slides"]] == 1).all(axis=None)
    assert compared.loc[compared["metric"] == "auroc", "p_delong"].tolist() == [1.0]


def test_the_t_test_is_students_without_overlap_and_stricter_with_it():
    differences = np.array([0.02, 0.05, -0.01, 0.04, 0.03])
    p, (low, high) = corrected_t_test(differences, 0.0)
    assert p == pytest.approx(stats.ttest_1samp(differences, 0).pvalue)
    assert low < 0.026 < high
    assert corrected_t_test(differences, 0.25)[0] > p
    assert np.isnan(corrected_t_test(differences[:1], 0.25)[0])
    assert np.isnan(corrected_t_test(np.array([0.1, 0.1]), 0.25)[0])


def test_the_bootstrap_p_is_never_zero():
    assert bootstrap_p(np.full(99, 0.5)) == pytest.approx(0.02)
    assert bootstrap_p(np.linspace(-1, 1, 101)) == 1.0
    assert np.isnan(bootstrap_p(np.array([np.nan])))


@pytest.mark.slow
def test_under_no_difference_p_values_are_small_as_rarely_as_they_say():
    found = np.zeros(3)
    for seed in range(40):
        compared = compare_methods(predict({"a": 1.0, "b": 1.0}, n_cases=16, seed=seed), 100)
        row = compared.set_index("metric").loc["auroc"]
        found += row[["p_folds", "p_slides", "p_delong"]].to_numpy(float) < 0.1
    assert (found <= 10).all(), found  # 4 expected; more than 10 by chance once in 600 times


def test_repeats_are_pooled_each_by_itself_and_averaged():
    predictions = predict({"m": 1.0}, n_repeats=3)
    summary = summarize(predictions, 300).set_index("metric")
    each = [
        summarize(part.drop(columns="repeat"), 300).set_index("metric") for _, part in predictions.groupby("repeat")
    ]
    for key in ("mean", "pooled"):
        assert summary.loc["auroc", key] == pytest.approx(np.mean([one.loc["auroc", key] for one in each]))
    assert summary.loc["auroc", "draw_sd"] == pytest.approx(np.std([one.loc["auroc", "mean"] for one in each], ddof=1))
    assert (summary.loc["auroc", "n_folds"], summary.loc["auroc", "n_draws"]) == (15, 3)
    # Three equal repeats say no more of the patients than one.
    copies = pd.concat([predictions[predictions["repeat"] == 0].assign(repeat=repeat) for repeat in range(3)])
    copied = summarize(copies, 300).set_index("metric").loc["auroc"]
    for key in ("pooled", "slide_low", "slide_high"):
        assert copied[key] == pytest.approx(each[0].loc["auroc", key])


def test_methods_get_the_same_resamples_in_whatever_order_their_rows_are():
    predictions = predict({"m": 1.0})
    point, values = pooled_resamples(predictions, 50, 0)["accuracy"]
    shuffled = pooled_resamples(predictions.sample(frac=1, random_state=1), 50, 0)["accuracy"]
    assert shuffled[0] == point
    np.testing.assert_allclose(shuffled[1], values)
