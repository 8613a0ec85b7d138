import pytest
import torch

from src.metrics.firing import FiringCounts
from src.metrics.latent_counts import L0
from src.ops.sparse_latents import SparseLatents


def _batches():
    first = torch.tensor([[1.0, 0.0, 2.0, 0.0]])
    second = torch.tensor([[0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0], [3.0, 0.0, 0.0, 0.0]])
    return [SparseLatents.from_dense(dense) for dense in (first, second)]


def test_l0_is_a_mean_over_rows_not_over_batches():
    metric = L0()
    for latents in _batches():
        metric.update(latents)
    assert float(metric.compute()) == pytest.approx(4 / 4)


def test_dead_fraction_is_of_the_whole_set():
    metric = FiringCounts(4)
    for latents in _batches():
        metric.update(latents)
    assert float(metric.compute()["dead_fraction"]) == 0.5


def test_a_listed_zero_is_silence():
    latents = SparseLatents(torch.tensor([0, 2]), torch.tensor([0, 1]), torch.tensor([0.0, 1.0]), (1, 2))
    l0, dead = L0(), FiringCounts(2)
    l0.update(latents)
    dead.update(latents)
    assert (float(l0.compute()), float(dead.compute()["dead_fraction"])) == (1.0, 0.5)
