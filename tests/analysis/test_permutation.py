import numpy as np
import pytest

from src.analysis.permutation import bootstrap_statistics, max_t_p_values, permute, t_kernel


def test_labels_move_within_strata_and_with_their_block():
    labels = np.array([1, 1, 0, 0, 1, 0, 0, 0])
    strata = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    blocks = np.array([0, 0, 1, 2, 3, 4, 5, 5])
    dealt = permute(labels, strata, blocks, 200, np.random.default_rng(0))
    assert (dealt[:, 0] == dealt[:, 1]).all()
    assert (dealt[:, 6] == dealt[:, 7]).all()
    of_blocks = dealt[:, [0, 2, 3, 4, 5, 6]]
    assert (of_blocks[:, :3].sum(axis=1) == 1).all()
    assert (of_blocks[:, 3:].sum(axis=1) == 1).all()
    assert 0.2 < dealt[:, 0].mean() < 0.5


def test_largest_statistic_by_hand():
    """Four rows, two of them positive: 6 labelings, of which one puts the two large values together."""
    values = np.array([[5.0, 0.0], [4.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    labels = np.array([1, 1, 0, 0])
    kernel = t_kernel(values, [np.arange(4)], is_guarded=False)
    p_values = max_t_p_values([kernel], (1,), labels, np.zeros(4, int), np.arange(4), 6000, 0)
    # The second column is constant in both groups under one labeling ({1, 3}): t is infinite there.
    assert p_values[0, 0] == pytest.approx(2 / 6, abs=0.03)
    assert p_values[0, 1] > 0.6


def test_family_wise_error_is_kept_and_a_strong_column_is_found():
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(60):
        values = rng.gamma(0.5, size=(24, 100))
        labels = rng.permutation(np.arange(24) % 2)
        kernel = t_kernel(values, [np.arange(24)], is_guarded=True)
        p_values = max_t_p_values([kernel], (1,), labels, np.zeros(24, int), np.arange(24), 200, seed)
        hits += (p_values < 0.05).any()
    assert hits <= 9  # 3 expected; 9 or more has a chance below 0.004
    values[:, 7] += 4 * labels
    kernel = t_kernel(values, [np.arange(24)], is_guarded=True)
    p_values = max_t_p_values([kernel], (1,), labels, np.zeros(24, int), np.arange(24), 200, 0)[0]
    assert p_values[7] == pytest.approx(1 / 201)
    assert np.sort(p_values)[1] > 0.05


def test_a_constant_column_has_no_p_value_and_two_sided_finds_lower_ones():
    rng = np.random.default_rng(0)
    labels = np.arange(20) % 2
    values = rng.normal(size=(20, 3))
    values[:, 1] = 2.0
    values[:, 2] -= 5 * labels
    kernel = t_kernel(values, [np.arange(20)], is_guarded=False)
    dealt = [kernel], (1,), labels, np.zeros(20, int), np.arange(20), 300, 0
    one_sided, two_sided = (max_t_p_values(*dealt, two_sided=sided)[0] for sided in (False, True))
    assert np.isnan(one_sided[1])
    assert np.isnan(two_sided[1])
    assert one_sided[2] == 1
    assert two_sided[2] < 0.01


def test_draws_keep_the_number_of_each_group_and_stratum():
    seen = []

    def kernel(positive, counts):
        seen.append((positive, counts))
        return np.zeros((len(counts), 1))

    is_positive, strata = np.array([1, 1, 0, 0, 0], bool), np.array([0, 0, 0, 1, 1])
    assert sum(len(found) for found in bootstrap_statistics(kernel, is_positive, strata, 10, 50, 0)) == 50
    (positive, counts), *_ = seen
    assert (positive == is_positive).all()
    assert (counts[:, :2].sum(axis=1) == 2).all()
    assert (counts[:, 2] == 1).all()
    assert (counts[:, 3:].sum(axis=1) == 2).all()
    assert counts.max() == 2
