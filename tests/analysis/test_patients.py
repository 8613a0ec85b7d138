import numpy as np
import pytest
from scipy.sparse import csr_matrix

from src.analysis.patients import TooFewCasesError, classify_cases, label_cases


def make_cases(n_cases=60, n_latents=30, strength=3.0, seed=0):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 2, n_cases)
    values = generator.random((n_cases, n_latents)) * (generator.random((n_cases, n_latents)) < 0.4)
    values[:, 4] += strength * labels
    return csr_matrix(values), {f"c{index:02d}": "ab"[label] for index, label in enumerate(labels)}


def test_a_planted_neuron_tells_the_label_and_noise_does_not():
    table, results = classify_cases(*make_cases(), n_folds=5, seed=0)
    assert results["cases/auroc"] > 0.95
    assert results["cases/balanced_accuracy"] > 0.9
    noise = [classify_cases(*make_cases(strength=0, seed=seed), n_folds=5, seed=0)[1] for seed in range(8)]
    assert np.mean([one["cases/auroc"] for one in noise]) == pytest.approx(0.5, abs=0.1)
    assert sorted(set(table["fold"])) == [0, 1, 2, 3, 4]
    assert results["cases/accuracy"] == pytest.approx((table["label"] == table["predicted"]).mean())
    np.testing.assert_allclose(table[["prob_a", "prob_b"]].sum(axis=1), 1)


def test_nothing_of_a_case_is_seen_before_it_is_predicted():
    """What a fold's cases hold changes the predictions of no case of that fold but their own."""
    matrix, labels = make_cases()
    table, _ = classify_cases(matrix, labels, 5, 0)
    changed = matrix.toarray()
    one = int(np.flatnonzero(table["fold"] == 2)[0])
    changed[one] = 1000
    other, _ = classify_cases(csr_matrix(changed), labels, 5, 0)
    same_fold = (table["fold"] == 2) & (np.arange(len(table)) != one)
    np.testing.assert_allclose(table["prob_b"][same_fold], other["prob_b"][same_fold])


def test_three_classes_and_cases_without_a_label():
    matrix, labels = make_cases()
    labels = {case: [None, "x", "y", "z"][index % 4] for index, case in enumerate(labels)}
    table, results = classify_cases(matrix, labels, 5, 0)
    assert len(table) == results["cases/n"] == 45
    assert {"prob_x", "prob_y", "prob_z"} <= set(table.columns)


def test_too_few_cases_are_said():
    matrix, labels = make_cases(4)
    with pytest.raises(TooFewCasesError, match=r"got 1 of 'a', 3 of 'b'"):
        classify_cases(matrix, dict(zip(labels, "abbb", strict=True)), 5, 0)
    with pytest.raises(TooFewCasesError, match="got none"):
        classify_cases(matrix, dict.fromkeys(labels), 5, 0)


def test_a_case_has_the_label_that_its_items_agree_on():
    found = label_cases(["b", "a", "a", "c", "c", "d"], ["x", "x", None, "x", "y", None])
    assert list(found.items()) == [("a", "x"), ("b", "x"), ("c", None), ("d", None)]
