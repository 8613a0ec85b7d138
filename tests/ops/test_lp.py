import pytest
import torch

from src.ops.dense_latents import DenseLatents
from src.ops.lp import mean_power_sum
from src.ops.sparse_latents import SparseLatents


@pytest.mark.parametrize("make", [DenseLatents, SparseLatents.from_dense])
def test_powers_roots_and_weights(make):
    latents = make(torch.tensor([[4.0, 0.0, 9.0], [0.0, 0.0, 0.0]]))
    assert mean_power_sum(latents, 1.0).item() == pytest.approx(13 / 2)
    assert mean_power_sum(latents, 0.5).item() == pytest.approx(5 / 2)
    assert mean_power_sum(latents, 0.0).item() == pytest.approx(2 / 2)
    assert mean_power_sum(latents, 0.5, rooted=True).item() == pytest.approx(25 / 2)
    weights = torch.tensor([4.0, 7.0, 1.0])
    assert mean_power_sum(latents, 0.5, weights).item() == pytest.approx(7 / 2)
    assert mean_power_sum(make(torch.zeros(0, 3)), 0.5).item() == 0


@pytest.mark.parametrize("rooted", [False, True])
def test_gradients_are_exact_and_zeros_receive_none(rooted):
    values = torch.rand(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.1
    weights = torch.linspace(0.5, 2, 5, dtype=torch.float64).requires_grad_()
    pattern = values > 0.6

    def loss(values, weights):
        return mean_power_sum(DenseLatents(values * pattern), 0.4, weights, rooted=rooted)

    values.requires_grad_()
    assert torch.autograd.gradcheck(loss, (values, weights))
    sparse = SparseLatents.from_dense(values * pattern)
    torch.testing.assert_close(mean_power_sum(sparse, 0.4, weights, rooted=rooted), loss(values, weights))
    dense = (values.detach() * pattern).requires_grad_()
    mean_power_sum(DenseLatents(dense), 0.4, weights, rooted=rooted).backward()
    assert not dense.grad[~pattern].any()
    assert dense.grad[pattern].all()
