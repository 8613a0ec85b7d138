import re

import numpy as np
import pytest
from scipy import stats
from scipy.sparse import csr_matrix

from experiments.quickstart.chance import count_chance_findings, permute_labels
from src import config
from src.analysis.logistic_weights import mil_weights
from src.analysis.selection import (
    NeuronSelection,
    SelectionRule,
    average_cases,
    best_neuron_ids,
    rank_neurons,
)
from src.analysis.statistics import moments

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


@pytest.mark.parametrize("method", ["welch", "mann_whitney", "auroc", "effect_size", "logistic"])
@pytest.mark.parametrize("unit", ["case", "slide"])
def test_the_planted_neuron_is_first_and_the_suppressed_one_is_not_found(method, unit):
    maxima, labels, case_ids = planted()
    table = rank_neurons(maxima, labels, case_ids, CLASSES, np.full(300, 0.1), SelectionRule(method, unit))
    assert table["rank"].tolist() == list(range(1, 301))
    assert table.loc[0, "neuron_id"] == 7
    assert table.loc[0, "q_value"] < 0.01
    assert table.loc[0, "mean_positive"] > table.loc[0, "mean_negative"]
    suppressed = table.set_index("neuron_id").loc[8]
    assert suppressed["statistic"] < -4
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
    means, labels, _ = average_cases(maxima, np.array([1, 1, 0, 0]), np.array([0, 0, 0, 1]))
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
        moments(maxima[:1])
    for caught in (by_class, by_size):
        (override,) = re.findall(r"\((\S+=\S+)\)", str(caught.value))
        assert config.compose([override]).selection.split == "train+val"


def test_two_sided_ranks_lower_neurons_too():
    maxima, labels, case_ids = planted()
    for method in ("welch", "auroc", "effect_size", "mann_whitney"):
        table = rank_neurons(maxima, labels, case_ids, CLASSES, rule=SelectionRule(method, alternative="two_sided"))
        assert set(table["neuron_id"][:2]) == {7, 8}
    one_sided = rank_neurons(maxima, labels, case_ids, CLASSES).set_index("neuron_id")
    two_sided = rank_neurons(maxima, labels, case_ids, CLASSES, rule=SelectionRule(alternative="two_sided"))
    assert two_sided.set_index("neuron_id").loc[7, "p_value"] == pytest.approx(2 * one_sided.loc[7, "p_value"])


def test_p_values_of_zero_are_ordered_by_the_statistic():
    rng = np.random.default_rng(0)
    labels = np.arange(2000) % 2
    maxima = rng.normal(size=(2000, 3)) + np.outer(labels, [40, 60, -60])
    case_ids = [str(index) for index in range(2000)]
    table = rank_neurons(maxima, labels, case_ids, CLASSES, rule=SelectionRule(alternative="two_sided"))
    assert (table["p_value"] == 0).all()
    assert table["neuron_id"].tolist() == [1, 0, 2]
    assert NeuronSelection().fit(maxima, labels, case_ids, CLASSES).n_best_tied == 1


def test_dead_and_tied_neurons_are_counted():
    maxima, labels, case_ids = planted()
    maxima[:, 20] = maxima[:, 7]
    fitted = NeuronSelection().fit(maxima, labels, case_ids, CLASSES)
    assert fitted.n_untested == (np.ptp(maxima, axis=0) == 0).sum() > 0
    assert (fitted.n_tied, fitted.n_best_tied) == (1, 1)
    assert fitted.scores["neuron_id"][:2].tolist() == [7, 20]


def centres(n=60, seed=0):
    """Neuron 0 marks the centre, in which most cases are positive; neuron 1 the label, less clearly."""
    rng = np.random.default_rng(seed)
    centre = np.repeat([0, 1], n // 2)
    labels = (rng.random(n) < np.where(centre == 1, 0.9, 0.1)).astype(int)
    labels[[0, 1, -1, -2]] = [1, 1, 0, 0]
    values = 0.2 * rng.random((n, 40))
    values[:, 0] += 3 * centre
    values[:, 1] += labels * rng.uniform(0, 1.0, size=n)
    return values, labels, [str(index) for index in range(n)], [f"centre {one}" for one in centre]


@pytest.mark.parametrize("method", ["welch", "mann_whitney", "auroc", "effect_size", "logistic"])
@pytest.mark.parametrize("correction", ["bh", "max_t"])
def test_a_neuron_that_marks_the_centre_is_chosen_only_without_adjusting(method, correction):
    values, labels, case_ids, strata = centres()
    rule = SelectionRule(method, correction=correction, n_permutations=300)
    if method == "welch":
        assert rank_neurons(values, labels, case_ids, CLASSES, rule=rule)["neuron_id"][0] == 0
    adjusted = rank_neurons(values, labels, case_ids, CLASSES, rule=rule, strata=strata)
    assert adjusted["neuron_id"][0] == 1
    assert adjusted["q_value"][0] < 0.05
    assert adjusted.set_index("neuron_id").loc[0, "q_value"] > 0.05


def test_centres_of_one_class_are_named():
    values, labels, case_ids, strata = centres()
    strata[int(np.flatnonzero(labels == 0)[0])] = "alone"
    fitted = NeuronSelection().fit(values, labels, case_ids, CLASSES, strata=strata)
    assert fitted.left_out == ("alone",)
    with pytest.raises(ValueError, match="label and confounder cannot be told apart"):
        rank_neurons(values, labels, case_ids, CLASSES, strata=[str(label) for label in labels])


def test_mil_weights_find_the_neuron_of_witnesses():
    rng = np.random.default_rng(0)
    labels = np.arange(30) % 2
    bags = np.repeat(np.arange(30), 20)
    rows = rng.random((600, 12)) * (rng.random((600, 12)) < 0.2)
    rows[:, 4] *= 3
    for bag in np.flatnonzero(labels):
        rows[20 * bag + rng.integers(20), 7] = 2 + rng.random()
    weights = mil_weights(csr_matrix(rows), bags, labels, (1,))
    assert weights[0].argmax() == 7
    maxima = np.stack([rows[bags == bag].max(axis=0) for bag in range(30)])
    case_ids = [str(bag) for bag in range(30)]
    table = rank_neurons(maxima, labels, case_ids, CLASSES, rule=SelectionRule("mil_weights"), weights=weights)
    assert table["neuron_id"][0] == 7
    assert table["weight"][0] == weights[0, 7]
    with pytest.raises(ValueError, match=r"no selection.adjust_for with selection.method=mil_weights"):
        rank_neurons(
            maxima, labels, case_ids, CLASSES, rule=SelectionRule("mil_weights"), strata=case_ids, weights=weights
        )
    with pytest.raises(ValueError, match=r"Expected weights with selection.method=mil_weights"):
        rank_neurons(maxima, labels, case_ids, CLASSES, rule=SelectionRule("mil_weights"))
