import numpy as np
import pytest

from src.analysis.rank_figure import plot_ranks
from src.analysis.selection_rule import SelectionRule
from src.analysis.stability import bootstrap_stability, compare_selections, match_neurons, ranks_elsewhere


def test_a_strong_neuron_is_always_among_the_best_and_noise_is_not():
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 2
    values = rng.random((40, 50))
    values[:, 3] += 2 * labels
    values[:, 4] = 1.0
    known = (values, labels, [str(index) for index in range(40)], ("normal", "tumor"), SelectionRule())
    table = bootstrap_stability(*known, n_top=5, n_draws=100)
    assert table["top_share"].sum() == pytest.approx(5)
    assert table["top_share"][3] == 1
    assert table["top_share"][4] == 0
    assert table["top_share"].drop(3).max() < 0.9


def test_neurons_of_another_sae_are_found_by_the_direction_of_their_atoms():
    rng = np.random.default_rng(0)
    atoms = rng.normal(size=(20, 8))
    order = rng.permutation(20)
    others = 3 * atoms[order]
    nearest, cosines = match_neurons(atoms, others, [5, 0, 7])
    assert order[nearest].tolist() == [5, 0, 7]
    assert cosines == pytest.approx(1)
    rankings = {"fold 0": np.arange(20), "fold 1": np.argsort(order)}
    same = compare_selections(rankings, {"fold 0": atoms, "fold 1": others}, n_top=4)
    assert same[["overlap", "cosine", "best_cosine", "best_rank"]].iloc[0].tolist() == pytest.approx([1, 1, 1, 1])
    rankings["fold 1"] = rankings["fold 1"][::-1]
    other = compare_selections(rankings, {"fold 0": atoms, "fold 1": others}, n_top=4)
    assert other["overlap"][0] == 0
    assert other["best_rank"][0] == 20
    ranks = ranks_elsewhere(rankings, {"fold 0": atoms, "fold 1": others}, n_top=2)
    assert ranks["neuron_id"].tolist() == [0, 1, 0, 1]
    assert ranks["rank"].tolist() == [1, 2, 20, 19]
    assert ranks["cosine"].to_numpy() == pytest.approx(1)
    figure = plot_ranks(ranks)
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["fold 0", "fold 1"]
