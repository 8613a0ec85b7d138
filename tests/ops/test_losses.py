import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from src.ops.dense_latents import DenseLatents
from src.ops.losses import (
    auxk_reconstruction,
    mean_l1,
    mean_of_elements,
    mean_squared_error,
    norm_scaled_errors,
    summed_squared_error,
    unexplained_share,
)
from src.ops.sparse_latents import SparseLatents


def test_mean_squared_error_is_over_rows_and_dimensions():
    assert float(mean_squared_error(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 4.0]]))) == 2.5


def test_mean_l1_is_per_row():
    latents = SparseLatents.from_dense(torch.tensor([[1.0, 2.0], [0.0, 5.0]]))
    assert float(mean_l1(latents)) == 4.0


@pytest.mark.parametrize(("k_aux", "expected"), [(1, 1.0), (2, 0.5), (9, 0.5)])
def test_auxk_decodes_the_largest_dead_latents_of_each_row(k_aux, expected):
    pre_latents = torch.tensor([[2.0, 1.0, -7.0]])
    atoms = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    residual = torch.tensor([[1.0, 1.0]])
    # k_aux 1: [2, 0] is off by [1, -1], mean square 1; from 2 on: [2, 1] is off by [1, 0], and ReLU keeps the -7 out.
    rebuilt = auxk_reconstruction(pre_latents, atoms, k_aux)
    assert float(mean_squared_error(rebuilt, residual)) == expected


@settings(deadline=None)
@given(st.integers(0, 6), st.integers(9, 40), st.integers(1, 4), st.integers(0, 2**31))
def test_sparse_auxk_equals_the_dense_one(n_rows, n_dead, d_in, seed):
    generator = torch.Generator().manual_seed(seed)
    pre_latents = torch.randn(n_rows, n_dead, generator=generator, dtype=torch.float64)
    atoms = torch.randn(n_dead, d_in, generator=generator, dtype=torch.float64)
    for k_aux in (1, n_dead // 9, n_dead // 2, n_dead):  # the first two decode sparse, the others dense
        asked = [tensor.clone().requires_grad_() for tensor in (pre_latents, atoms)]
        plain = [tensor.clone().requires_grad_() for tensor in (pre_latents, atoms)]
        smallest = pre_latents.topk(k_aux, dim=1).values[:, -1:]
        expected = (plain[0].relu() * (pre_latents >= smallest)) @ plain[1]
        rebuilt = auxk_reconstruction(*asked, k_aux)
        torch.testing.assert_close(rebuilt, expected)
        upstream = torch.randn(n_rows, d_in, generator=generator, dtype=torch.float64)
        gradients = torch.autograd.grad(rebuilt, asked, upstream)
        torch.testing.assert_close(gradients, torch.autograd.grad(expected, plain, upstream))


def test_auxk_without_dead_neurons_makes_nothing():
    assert torch.equal(auxk_reconstruction(torch.zeros(3, 0), torch.zeros(0, 2), 4), torch.zeros(3, 2))


def test_summed_squared_error_is_per_row():
    reconstruction, inputs = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[0.0, 4.0], [3.0, 0.0]])
    assert summed_squared_error(reconstruction, inputs).item() == (1 + 4 + 9) / 2
    assert summed_squared_error(torch.zeros(0, 2), torch.zeros(0, 2)).item() == 0


@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 4)])
def test_gradient_of_the_squared_error_is_that_of_its_formula(shape):
    generator = torch.Generator().manual_seed(0)
    pair = [torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(summed_squared_error, pair)
    found = torch.autograd.grad(mean_squared_error(*pair), pair)
    for one, expected in zip(found, torch.autograd.grad(F.mse_loss(*pair), pair), strict=True):
        torch.testing.assert_close(one, expected)


def test_squared_errors_in_half_precision_are_summed_in_float32():
    ones = torch.ones(1, 4096, dtype=torch.bfloat16)
    assert summed_squared_error(ones, torch.zeros_like(ones)).item() == 4096
    assert summed_squared_error(ones.repeat(3, 1), torch.zeros(3, 4096)).item() == 4096


def test_norm_scaled_errors_divide_by_the_rows_norms():
    inputs, reconstruction = torch.tensor([[3.0, 4.0], [0.0, 2.0]]), torch.tensor([[3.0, 2.0], [1.0, 2.0]])
    # 2^2 / 5 and 1 / 2.
    torch.testing.assert_close(norm_scaled_errors(reconstruction, inputs), torch.tensor([[0.0, 0.8], [0.5, 0.0]]))
    assert mean_of_elements(norm_scaled_errors(reconstruction, inputs)).item() == pytest.approx(1.3 / 4)
    assert norm_scaled_errors(torch.ones(1, 2), torch.zeros(1, 2)).isfinite().all()


def test_the_class_token_has_its_own_weight():
    blocks = torch.tensor([[[3.0, 4.0], [0.0, 2.0], [1.0, 0.0]]]).repeat(2, 1, 1)
    reconstruction = blocks + 1
    plain, weighted = (norm_scaled_errors(reconstruction, blocks, weight) for weight in (1.0, 3.0))
    torch.testing.assert_close(weighted[:, 0], 3 * plain[:, 0])
    assert torch.equal(weighted[:, 1:], plain[:, 1:])
    # The rows' errors are 1/5, 1/2 and 1; (3 * 0.2 + 0.5 + 1) / 3 = 0.7.
    assert mean_of_elements(weighted).item() == pytest.approx(0.7)


def test_mean_l1_weighs_neurons_alike_in_both_kinds_of_latents():
    dense = torch.tensor([[1.0, 2.0], [0.0, 5.0]])
    weights = torch.tensor([10.0, 1.0], requires_grad=True)
    for latents in (SparseLatents.from_dense(dense), DenseLatents(dense)):
        loss = mean_l1(latents, weights)
        assert loss.item() == (10 + 2 + 5) / 2
        assert torch.autograd.grad(loss, weights)[0].tolist() == [0.5, 3.5]
    assert mean_l1(DenseLatents(dense[:0])).item() == 0


def test_unexplained_share_is_about_the_mean():
    target, reconstruction = torch.tensor([[1.0, 0.0], [3.0, 4.0]]), torch.tensor([[0.0, 0.0], [3.0, 2.0]])
    # Error 1 + 4; variance 2 * 1 + 2 * 4.
    assert unexplained_share(target, reconstruction).item() == 0.5
    mean = target.mean(0).expand(2, 2)
    assert unexplained_share(target, mean).item() == 1


@pytest.mark.parametrize("reconstruction", [[[0.0, 0.0]], [[1.0, 2.0]]])
def test_a_target_that_does_not_vary_gives_neither_loss_nor_gradient(reconstruction):
    rebuilt = torch.tensor(reconstruction, requires_grad=True)
    loss = unexplained_share(torch.tensor([[1.0, 2.0]]), rebuilt)
    assert loss.item() == 0
    assert not torch.autograd.grad(loss, rebuilt)[0].any()


def test_unexplained_share_hides_no_diverged_training():
    assert unexplained_share(torch.tensor([[1.0], [torch.nan]]), torch.zeros(2, 1)).isnan()
