import numpy as np
import pytest

from src.analysis.steering_controls import draw_matched

MASS = np.random.default_rng(0).pareto(1.5, 1000)


@pytest.mark.parametrize("k", [1, 2, 10, 200])
def test_sets_have_the_number_and_the_mass_of_the_chosen_ones_and_share_none(k):
    chosen = np.random.default_rng(1).choice(1000, k, replace=False)
    drawn = draw_matched(chosen, MASS, 20, np.random.default_rng(2))
    assert drawn.shape == (20, k)
    assert all(len(set(one)) == k for one in drawn.tolist())
    assert not np.isin(drawn, chosen).any()
    assert MASS[drawn].sum(1) == pytest.approx(np.full(20, MASS[chosen].sum()), rel=0.05)
    assert len({tuple(sorted(one)) for one in drawn.tolist()}) > 5


def test_the_heaviest_neurons_have_no_match_but_among_themselves():
    chosen = np.argsort(-MASS)[:100]
    drawn = draw_matched(chosen, MASS, 5, np.random.default_rng(0))
    assert MASS[drawn].sum(1) == pytest.approx(np.full(5, MASS[chosen].sum()), rel=0.02)
    assert np.isin(drawn, chosen).any()


@pytest.mark.parametrize("k", [0, 1000])
def test_nothing_and_everything_match_themselves(k):
    drawn = draw_matched(np.arange(k), MASS, 2, np.random.default_rng(0))
    assert np.sort(drawn, 1).tolist() == [list(range(k))] * 2


def test_a_seed_gives_the_same_sets():
    first, second = (draw_matched(np.arange(9), MASS, 3, np.random.default_rng(5)) for _ in range(2))
    assert first.tolist() == second.tolist()


def test_silent_neurons_are_matched_by_silent_ones():
    mass = np.r_[np.zeros(50), np.ones(50)]
    drawn = draw_matched(np.arange(5), mass, 4, np.random.default_rng(0))
    assert mass[drawn].sum() == 0
