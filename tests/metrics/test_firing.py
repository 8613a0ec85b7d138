import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from src.metrics.firing import FiringCounts
from src.metrics.latent_counts import L0, L1, L0Histogram
from src.ops.sparse_latents import SparseLatents


def latents_of(n_rows, n_latents, seed, share=0.3):
    generator = torch.Generator().manual_seed(seed)
    dense = torch.rand(n_rows, n_latents, generator=generator)
    return dense * (torch.rand(n_rows, n_latents, generator=generator) < share)


def fill(metric, dense, cut=None):
    for rows in dense.split(cut or max(len(dense), 1)):
        metric.update(SparseLatents.from_dense(rows))
    return metric


def test_hand_computed_case():
    # Of ten rows, neuron 0 fires on none, 1 on one, 2 on five, 3 on all.
    dense = torch.zeros(10, 4)
    dense[3, 1] = 2.0
    dense[:5, 2] = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    dense[:, 3] = 1.0
    metric = fill(FiringCounts(4, almost_dead_below=0.2, dense_above=0.5), dense, cut=3)
    assert metric.n_fired.tolist() == [0, 1, 5, 10]
    assert metric.density.tolist() == [0, 0.1, 0.5, 1]
    assert metric.maxima.tolist() == [0, 2, 5, 1]
    assert metric.mean_when_active.tolist()[1:] == [2, 3, 1]
    assert math.isnan(metric.mean_when_active[0])
    # A neuron that is just as dense as the limit is not dense; the dead are among the almost dead.
    assert {name: float(value) for name, value in metric.compute().items()} == {
        "dead_fraction": 0.25,
        "almost_dead_fraction": 0.5,
        "dense_fraction": 0.25,
        "n_tokens": 10,
    }


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 1000), st.integers(1, 40))
def test_batches_do_not_change_the_numbers(n_rows, n_latents, seed, cut):
    dense = latents_of(n_rows, n_latents, seed)
    metric = fill(FiringCounts(n_latents), dense, cut)
    active = dense > 0
    assert torch.equal(metric.n_fired, active.sum(0))
    assert torch.equal(metric.maxima, dense.amax(0))
    assert torch.allclose(metric.sums, dense.double().sum(0))
    assert int(metric.compute()["n_tokens"]) == n_rows
    assert float(metric.compute()["dead_fraction"]) == float((~active.any(0)).double().mean())
    counts = fill(L0Histogram(n_latents), dense, cut).compute()
    assert counts.tolist() == torch.bincount(active.sum(1), minlength=n_latents + 1).tolist()
    l0 = float(fill(L0(), dense, cut).compute())
    assert l0 == pytest.approx(float((counts * torch.arange(n_latents + 1)).sum() / n_rows))
    assert float(fill(L1(), dense, cut).compute()) == pytest.approx(float(dense.double().sum() / n_rows))


def test_on_few_rows_almost_dead_is_dead():
    shares = fill(FiringCounts(50), latents_of(100, 50, seed=0, share=0.005)).compute()
    assert 0 < float(shares["almost_dead_fraction"]) == float(shares["dead_fraction"]) < 1


def test_a_listed_zero_is_no_firing():
    latents = SparseLatents(torch.tensor([0, 2]), torch.tensor([0, 1]), torch.tensor([0.0, 1.0]), (1, 2))
    firing, histogram = FiringCounts(2), L0Histogram(2)
    firing.update(latents)
    histogram.update(latents)
    assert firing.n_fired.tolist() == [0, 1]
    assert histogram.compute().tolist() == [0, 1, 0]


def test_without_rows_nothing_is_dead():
    shares = fill(FiringCounts(3), torch.empty(0, 3)).compute()
    assert math.isnan(shares["dead_fraction"])
    assert int(shares["n_tokens"]) == 0


def test_sums_over_processes_are_those_of_the_whole():
    # What distributed training does: each state is reduced over the processes as it says.
    dense = latents_of(30, 6, seed=1)
    whole, *parts = (fill(FiringCounts(6), rows) for rows in (dense, dense[:11], dense[11:]))
    for name, reduce in whole._reductions.items():
        reduced = reduce(torch.stack([getattr(part, name) for part in parts]))
        assert torch.allclose(reduced.squeeze(), getattr(whole, name)), name


@pytest.mark.parametrize(("below", "above"), [(0, 0.1), (0.2, 0.1), (0.1, 1.1)])
def test_refuses_limits_out_of_order(below, above):
    with pytest.raises(ValueError, match=r"almost_dead_below < evaluation\.dense_above"):
        FiringCounts(3, below, above)
