import numpy as np
import pytest
import torch

from src.analysis.firing_shift import compare_firing, describe_shift, firing_rates, plot_firing_shift
from src.ops.sparse_latents import SparseLatents


def make(rates, n_items=40, n_rows=50, seed=0):
    """Items on whose rows neurons fire with given chances."""
    rng = np.random.default_rng(seed)
    dense = (rng.random((n_items * n_rows, len(rates))) < np.array(rates)).astype(np.float32)
    codes = np.repeat(np.arange(n_items), n_rows)
    pieces = [
        (codes[part], SparseLatents.from_dense(torch.from_numpy(dense[part])))
        for part in np.array_split(np.arange(len(codes)), 3)
    ]
    return dense, codes, pieces


def test_rates_are_those_of_dense_latents():
    dense, codes, pieces = make([0.1, 0.5, 0.0])
    by_item, total = firing_rates(pieces, 40)
    np.testing.assert_allclose(total, dense.mean(axis=0))
    np.testing.assert_allclose(by_item, np.stack([dense[codes == i].mean(axis=0) for i in range(40)]), atol=1e-6)


def test_stored_zeros_do_not_fire():
    values = SparseLatents(torch.tensor([0, 2]), torch.tensor([0, 1]), torch.tensor([0.0, 2.0]), (1, 2))
    assert firing_rates([(np.array([0]), values)], 1)[1].tolist() == [0.0, 1.0]


def test_the_neuron_that_moved_is_found_and_the_chosen_one_stands_first():
    study = firing_rates(make([0.2, 0.2, 0.2, 0.1, 0.0])[2], 40)
    cohort = firing_rates(make([0.2, 0.6, 0.2, 0.0, 0.1], seed=1)[2], 40)
    table = compare_firing(study, cohort, [2])
    assert table["neuron_id"].tolist()[0] == 2
    assert set(table["neuron_id"].tolist()[1:4]) == {1, 3, 4}
    by_id = table.set_index("neuron_id")
    assert by_id.loc[1, "item_shift"] > 0.99
    assert by_id.loc[0, "item_shift"] == pytest.approx(0.5, abs=0.15)
    assert by_id.loc[1, "log2_ratio"] == pytest.approx(np.log2(3), abs=0.2)
    said = describe_shift(table)
    assert (said["n_silent"], said["n_new"]) == (1, 1)
    assert said["share_moved"] == pytest.approx(1 / 3)
    assert said["item_shift"] == by_id.loc[2, "item_shift"]


def test_the_figure_names_the_chosen_neurons():
    study, cohort = (firing_rates(make([0.2, 0.3, 0.0], seed=seed)[2], 40) for seed in (0, 1))
    figure = plot_firing_shift(compare_firing(study, cohort, [1]))
    assert [text.get_text() for text in figure.axes[0].texts] == ["1"]
