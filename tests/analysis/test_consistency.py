import numpy as np
import pytest
from scipy import stats

from src.analysis.class_statistics import ClassStatistics
from src.analysis.consistency import compare_rankings, halve_cases


def make(means, n_items=(5, 5)):
    means = np.asarray(means, float)
    return ClassStatistics(("a", "b"), np.array(n_items), means, np.zeros(means.shape, np.int64))


def test_equal_rankings_overlap_wholly_and_unrelated_ones_as_chance_says():
    generator = np.random.default_rng(0)
    means = generator.random((2, 400))
    same = compare_rankings(make(means), make(means), [10])
    assert same["overlap"].tolist() == [1, 1]
    assert same["rank_correlation"].tolist() == pytest.approx([1, 1])
    assert same["expected_overlap"].tolist() == [10 / 400] * 2
    assert (same["p_chance"] < 1e-15).all()
    draws = [compare_rankings(make(means), make(generator.random((2, 400))), [40]) for _ in range(40)]
    overlaps = np.array([draw["overlap"] for draw in draws])
    assert overlaps.mean() == pytest.approx(40 / 400, abs=0.03)


def test_numbers_by_hand():
    first, second = [[5, 4, 3, 0, 0], [0, 0, 0, 1, 0]], [[5, 0, 4, 3, 0], [0, 0, 0, 1, 0]]
    table = compare_rankings(make(first), make(second), [2, 9], "mean_abs").set_index(["class", "k"])
    row = table.loc["a", 2]
    assert row["n_neurons"] == 4  # the last fires in neither
    assert row["overlap"] == 0.5
    assert row["expected_overlap"] == 0.5
    assert row["p_chance"] == pytest.approx(1 - 1 / 6)  # not both others
    expected = stats.spearmanr([5, 4, 3, 0], [5, 0, 4, 3]).statistic
    assert row["rank_correlation"] == pytest.approx(expected)
    assert table.loc["a", 4]["overlap"] == 1  # of more than there are, all


def test_classes_that_one_side_lacks_are_left_out():
    table = compare_rankings(make([[1, 2], [2, 1]]), make([[1, 2], [np.nan, np.nan]], (5, 0)), [1], "mean_abs")
    assert table["class"].tolist() == ["a"]
    assert compare_rankings(make([[1, 2], [2, 1]]), make([[1, 2], [np.nan] * 2], (5, 0)), [1]).empty
    with pytest.raises(ValueError, match="same classes and neurons"):
        compare_rankings(make([[1, 2], [2, 1]]), make([[1], [2]]), [1])


def test_halves_keep_cases_whole_and_labels_even():
    cases = [f"c{index // 3}" for index in range(60)]
    labels = np.array([int(case in {"c0", "c1", "c2", "c3", "c4"}) for case in cases])
    halves = halve_cases(cases, labels, 0)
    assert all(len({half for one, half in zip(cases, halves, strict=True) if one == case}) == 1 for case in set(cases))
    for label in (0, 1):
        assert abs(np.diff(np.bincount(halves[labels == label]) // 3)[0]) <= 1
    # Neither the order of the items nor what else there is decides, but the seed does.
    order = np.random.default_rng(0).permutation(60)
    assert halve_cases([cases[index] for index in order], labels[order], 0).tolist() == halves[order].tolist()
    assert halve_cases(cases, labels, 1).tolist() != halves.tolist()
