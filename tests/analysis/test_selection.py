import re

import numpy as np
import pytest
from scipy import stats

from experiments.quickstart.chance import count_chance_findings, permute_labels
from src import config
from src.analysis.selection import (
    SelectionRule,
    average_cases,
    best_neuron_ids,
    rank_neurons,
)
from src.analysis.statistics import t_test

CLASSES = ("normal", "tumor")


def planted(n_cases=24, n_neurons=300, n_positive=None, seed=0, case_sd=0.7):
    """Sparse slide maxima of 1.5 slides a case; neuron 7 is higher in positive slides, neuron 8 in negative ones."""
    rng = np.random.default_rng(seed)
    codes = np.concatenate([np.arange(n_cases), rng.choice(n_cases, n_cases // 2, replace=False)])
    labels = (rng.permutation(n_cases) < (n_cases // 2 if n_positive is None else n_positive))[codes].astype(int)
    level = case_sd * rng.normal(size=(n_cases, n_neurons))[codes] + 0.5 * rng.normal(size=(len(codes), n_neurons))
    maxima = (level - rng.uniform(-2, 1.5, size=n_neurons)).clip(0)
    maxima[:, 7] = (labels + 0.3 * rng.normal(size=len(codes))).clip(0)
    maxima[:, 8] = (1.5 - labels + 0.1 * rng.normal(size=len(codes))).clip(0)
    maxima[:, 9] = 0
    return maxima.astype(np.float32), labels, [f"c{code:02d}" for code in codes]


@pytest.mark.parametrize("method", ["welch", "auroc", "effect_size"])
@pytest.mark.parametrize("unit", ["case", "slide"])
def test_the_planted_neuron_is_first_and_the_suppressed_one_is_not_found(method, unit):
    maxima, labels, case_ids = planted()
    table = rank_neurons(maxima, labels, case_ids, CLASSES, np.full(300, 0.1), SelectionRule(method, unit))
    assert table["rank"].tolist() == list(range(1, 301))
    assert table.loc[0, "neuron_id"] == 7
    assert table.loc[0, "q_value"] < 0.001
    assert table.loc[0, "mean_positive"] > table.loc[0, "mean_negative"]
    suppressed = table.set_index("neuron_id").loc[8]
    assert suppressed["statistic"] < -5
    assert suppressed["p_value"] > 0.99
    assert suppressed["auroc"] < 0.1


def test_constant_neurons_are_kept_last_without_a_test():
    maxima, labels, case_ids = planted()
    constant = np.flatnonzero(np.ptp(maxima, axis=0) == 0)
    assert 9 in constant
    last = rank_neurons(maxima, labels, case_ids, CLASSES).iloc[-len(constant) - 1 :]
    assert last["neuron_id"][1:].tolist() == constant.tolist()
    assert last[["statistic", "p_value", "q_value", "effect_size"]][1:].isna().all(axis=None)
    assert last[["statistic", "p_value", "q_value", "effect_size"]].iloc[0].notna().all()
    assert (last["auroc"][1:] == 0.5).all()


def test_one_slide_a_case_and_plain_welch_equal_scipy():
    maxima, labels, _ = planted()
    case_ids = [str(index) for index in range(len(labels))]
    table = rank_neurons(maxima, labels, case_ids, CLASSES, rule=SelectionRule(p_value="welch")).set_index("neuron_id")
    for neuron_id in (0, 7, 8, 42):
        column = maxima[:, neuron_id].astype(np.float64)
        expected = stats.ttest_ind(column[labels == 1], column[labels == 0], equal_var=False, alternative="greater")
        assert table.loc[neuron_id, "statistic"] == pytest.approx(expected.statistic)
        assert table.loc[neuron_id, "p_value"] == pytest.approx(expected.pvalue)
    tested = table["p_value"].dropna()
    assert table.loc[tested.index, "q_value"].to_numpy() == pytest.approx(stats.false_discovery_control(tested))


def test_guarded_p_is_the_larger_and_the_same_where_equal_groups_differ():
    maxima, labels, case_ids = planted(n_positive=18)
    plain, guarded = (
        rank_neurons(maxima, labels, case_ids, CLASSES, rule=SelectionRule(p_value=p_value))
        .set_index("neuron_id")["p_value"]
        .dropna()
        .sort_index()
        for p_value in ("welch", "guarded")
    )
    assert (guarded >= plain).all()
    assert (guarded > plain).any()
    maxima, labels = maxima[:24], np.arange(24) % 2
    plain, guarded = (
        rank_neurons(maxima, labels, case_ids[:24], CLASSES, rule=SelectionRule(p_value=p_value))["p_value"]
        for p_value in ("welch", "guarded")
    )
    np.testing.assert_array_equal(plain[plain < 0.5], guarded[plain < 0.5])


def test_equal_neurons_are_ordered_by_id():
    values = np.tile(np.random.default_rng(0).random((10, 1)), 5)
    table = rank_neurons(values, np.arange(10) % 2, [str(index) for index in range(10)], CLASSES)
    assert table["neuron_id"].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("n_positive", [6, 12, 18])
def test_permuted_labels_find_nothing(n_positive):
    """Neither balance nor slides that resemble their case's other slides make findings out of chance."""
    found = 0
    for seed in range(3):
        maxima, labels, case_ids = planted(n_neurons=1000, n_positive=n_positive, seed=seed, case_sd=1.5)
        found += count_chance_findings(maxima, labels, case_ids, CLASSES, range(20))
    assert found <= 9  # 3 of 60 expected at most; 9 or more has a chance below 0.004


def test_what_case_and_guard_are_for():
    """Slides taken for independent and Welch's p alone find in chance what the default does not."""
    maxima, labels, case_ids = planted(n_neurons=1000, n_positive=18, case_sd=1.5)
    naive = count_chance_findings(
        maxima, labels, case_ids, CLASSES, range(20), SelectionRule(unit="slide", p_value="welch")
    )
    assert naive > 3
    assert count_chance_findings(maxima, labels, case_ids, CLASSES, range(20)) <= 3


def test_labels_move_with_their_case():
    case_ids = ["a", "b", "a", "c", "d", "b"]
    labels = np.array([1, 0, 1, 0, 1, 0])
    permuted = [permute_labels(labels, case_ids, seed) for seed in range(20)]
    for dealt in permuted:
        assert dealt[0] == dealt[2]
        assert dealt[1] == dealt[5]
        assert dealt[[0, 1, 3, 4]].sum() == 2
    assert len({tuple(dealt) for dealt in permuted}) > 1
    np.testing.assert_array_equal(permuted[3], permute_labels(labels, case_ids, 3))


def test_average_cases_by_hand():
    maxima = np.array([[1.0], [3.0], [10.0], [4.0]], dtype=np.float32)
    means, labels = average_cases(maxima, np.array([1, 1, 0, 0]), ["a", "a", "a", "b"])
    assert sorted(zip(means[:, 0].tolist(), labels.tolist(), strict=True)) == [(2.0, 1), (4.0, 0), (10.0, 0)]


def test_more_classes_are_tested_one_against_the_rest():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 12)
    maxima = rng.random((36, 50))
    for class_index in range(3):
        maxima[labels == class_index, 10 + class_index] += 1 + class_index
    case_ids = [str(index) for index in range(36)]
    table = rank_neurons(maxima, labels, case_ids, ("a", "b", "c"))
    assert len(table) == 150
    best = table.groupby("class").first()["neuron_id"]
    assert best.to_dict() == {"a": 10, "b": 11, "c": 12}
    # One family of 150 tests, not three of 50.
    np.testing.assert_allclose(table["q_value"], stats.false_discovery_control(table["p_value"]))
    assert set(best_neuron_ids(table, 3)) == {10, 11, 12}


def test_best_neurons():
    maxima, labels, case_ids = planted(n_neurons=12)
    table = rank_neurons(maxima, labels, case_ids, CLASSES)
    assert best_neuron_ids(table, 3) == table["neuron_id"][:3].tolist()
    with pytest.raises(ValueError, match="ranking of at least 13 neurons, got 12"):
        best_neuron_ids(table, 13)


def test_errors_say_what_to_give():
    with pytest.raises(ValueError, match=r"selection.method to be one of .*'auroc'.*, got 'anova'"):
        SelectionRule(method="anova")
    with pytest.raises(ValueError, match="at least two cases of class 'tumor' and two others, got 1 and 2"):
        rank_neurons(np.zeros((4, 2)), np.array([0, 0, 1, 1]), ["a", "b", "c", "c"], CLASSES)


def test_what_errors_say_to_give_can_be_typed():
    maxima, labels = np.ones((4, 2)), np.arange(4) < 1
    with pytest.raises(ValueError, match="use more") as by_class:
        rank_neurons(maxima, labels.astype(int), list("abcd"), ("normal", "tumor"), np.ones(2), SelectionRule())
    with pytest.raises(ValueError, match="use more") as by_size:
        t_test(maxima[:1], maxima[1:], equal_variances=False)
    for caught in (by_class, by_size):
        (override,) = re.findall(r"\((\S+=\S+)\)", str(caught.value))
        assert config.compose([override]).selection.split == "train+val"
