import numpy as np

from src.analysis.fold_ranks import rank_over_folds
from src.analysis.stability import match_neurons


def test_with_one_sae_neurons_are_followed_by_their_id():
    ranks = rank_over_folds({"0": [3, 1, 2], "1": [1, 2, 3]}, n_chosen=1).set_index(["neuron", "fold"])
    assert ranks["rank"].to_dict() == {(1, "0"): 2, (3, "0"): 1, (1, "1"): 1, (3, "1"): 3}
    assert ranks["is_chosen"].to_dict() == {(1, "0"): False, (3, "0"): True, (1, "1"): True, (3, "1"): False}


def test_with_saes_of_their_own_neurons_are_followed_by_their_atoms():
    rng = np.random.default_rng(0)
    atoms = rng.normal(size=(20, 8))
    shuffled = rng.permutation(20)  # neuron i of fold 1 is neuron shuffled[i] of fold 0, a little turned and longer
    others = 3 * (atoms[shuffled] + 0.05 * rng.normal(size=(20, 8)))
    place = np.argsort(shuffled)
    rankings = {"0": list(range(20)), "1": [int(place[i]) for i in range(20)]}
    ranks = rank_over_folds(rankings, 5, {"0": atoms, "1": others})
    assert sorted(set(ranks["neuron"])) == [0, 1, 2, 3, 4]
    assert (ranks.groupby("neuron")["rank"].nunique() == 1).all()
    assert ranks["is_chosen"].all()
    assert (ranks["cosine"] > 0.95).all()


def test_a_silent_atom_is_near_to_nothing():
    nearest, cosines = match_neurons(np.array([[0.0, 0], [1, 0]]), np.array([[0, 1.0], [2, 0]]), [0, 1])
    assert (nearest[1], cosines.tolist()) == (1, [0.0, 1.0])


def test_a_neuron_that_a_fold_does_not_rank_has_no_rank():
    ranks = rank_over_folds({"0": [1], "1": [2]}, 1)
    assert ranks["rank"].isna().sum() == 2
