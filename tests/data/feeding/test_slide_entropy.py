import numpy as np
import pytest

from src.data.feeding.slide_entropy import slide_entropy

STARTS = np.array([0, 100, 200, 300])


def test_batches_of_one_slide_have_none():
    assert slide_entropy([np.arange(50), np.arange(100, 150)], STARTS, 400) == 0.0


def test_even_batches_by_hand():
    # 2 bits of 4 slides; draws of all rows have them too, so the share is exact.
    assert slide_entropy([np.arange(400)], STARTS, 400) == pytest.approx(1.0)
    # Half of slide 0 and half of slide 1: 1 bit of at most 2.
    half = slide_entropy([np.arange(200)], STARTS, 400)
    assert 0.5 < half < 0.51


def test_a_permutation_mixes_as_uniform_draws_do():
    order = np.random.default_rng(1).permutation(400)
    assert slide_entropy(np.split(order, 8), STARTS, 400) == pytest.approx(1.0, abs=0.02)


def test_one_slide_has_nothing_to_mix():
    assert slide_entropy([np.arange(5)], np.array([0]), 10) == 1.0
