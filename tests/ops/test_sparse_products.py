import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from src.ops.sparse_latents import SparseLatents
from src.ops.sparse_products import (
    decode_sparse,
    encode_kept,
    kept_dot_products,
    pre_latents_above,
    transposed_product,
)


def _random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def _latents(n_rows, n_latents, density, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    kept = torch.rand(n_rows, n_latents, generator=generator) < density
    return SparseLatents.from_dense(torch.where(kept, _random(n_rows, n_latents, seed=seed + 1, dtype=dtype), 0.0))


_SHAPES = (st.integers(0, 9), st.integers(1, 12), st.integers(1, 5), st.floats(0, 1), st.integers(0, 2**31))


@settings(deadline=None)
@given(*_SHAPES)
def test_products_equal_the_dense_ones(n_rows, n_latents, d_in, density, seed):
    latents = _latents(n_rows, n_latents, density, seed)
    atoms, rows = _random(n_latents, d_in, seed=seed), _random(d_in, n_rows, seed=seed + 2).T  # rows not contiguous
    dense = latents.to_dense()
    torch.testing.assert_close(decode_sparse(latents, atoms), dense @ atoms)
    torch.testing.assert_close(transposed_product(latents, rows), dense.T @ rows)
    torch.testing.assert_close(kept_dot_products(latents, rows, atoms), (rows @ atoms.T)[dense != 0])


@pytest.mark.parametrize("n_latents", [6, 600])
def test_dot_products_in_half_precision_are_float32_sums_rounded(n_latents):
    latents = _latents(5, n_latents, 0.5)
    rows, atoms = _random(5, 40).bfloat16(), _random(n_latents, 40, seed=1).bfloat16()
    expected = kept_dot_products(latents, rows.float(), atoms.float())
    assert torch.equal(kept_dot_products(latents, rows, atoms), expected.bfloat16())


@settings(deadline=None)
@given(*_SHAPES)
def test_pre_latents_above_equals_the_dense_comparison(n_rows, n_latents, d_in, share, seed):
    inputs, weights, bias = _random(n_rows, d_in, seed=seed), _random(n_latents, d_in, seed=1), _random(n_latents)
    pre_latents = inputs @ weights.T + bias
    threshold = torch.tensor(share, dtype=torch.float64)
    for bound in (threshold, threshold * torch.arange(n_latents)):
        latents = pre_latents_above(inputs, weights, bias, bound)
        torch.testing.assert_close(latents.to_dense(), torch.where(pre_latents > bound, pre_latents, 0.0))
    torch.testing.assert_close(
        pre_latents_above(inputs, weights, None, threshold).to_dense().sum(),
        _above(inputs @ weights.T, threshold).sum(),
    )


def _above(pre_latents, threshold):
    return torch.where(pre_latents > threshold, pre_latents, 0.0)


def test_pre_latents_above_in_several_pieces():
    inputs, weights = _random(1000, 4), _random(8192, 4, seed=1)
    pre_latents = inputs @ weights.T
    latents = pre_latents_above(inputs, weights, None, torch.tensor(3.0, dtype=torch.float64))
    assert torch.equal(latents.to_dense() > 0, pre_latents > 3.0)


def test_decode_gradients_by_gradcheck():
    pattern = _latents(6, 7, 0.4)
    atoms = _random(7, 3, seed=2).requires_grad_()

    def sparse(values, atoms):
        return decode_sparse(pattern.with_values(values), atoms)

    assert torch.autograd.gradcheck(sparse, (pattern.values.clone().requires_grad_(), atoms))


def _dense_encoder(pattern, x, W_enc, b_enc, b_dec):
    return ((x - b_dec) @ W_enc.T + b_enc)[pattern.to_dense() != 0]


def _sparse_encoder(pattern, x, W_enc, b_enc, b_dec):
    centred = x - b_dec.detach()
    values = (centred @ W_enc.T + b_enc)[pattern.to_dense() != 0]
    return encode_kept(pattern.with_values(values), centred, W_enc, b_enc, b_dec).values


def test_encode_gradients_equal_the_dense_formula():
    pattern = _latents(6, 7, 0.4)
    arguments = [_random(6, 3), _random(7, 3, seed=1), _random(7, seed=2), _random(3, seed=3)]
    arguments = [argument.requires_grad_() for argument in arguments]
    upstream = _random(pattern.n_entries, seed=4)
    expected = torch.autograd.grad(_dense_encoder(pattern, *arguments), arguments, upstream)
    for ours, theirs in zip(
        torch.autograd.grad(_sparse_encoder(pattern, *arguments), arguments, upstream), expected, strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_encode_gradients_by_gradcheck():
    # The values are handed in, so they are recomputed from the checked arguments with the gradient cut off.
    pattern = _latents(5, 6, 0.5)
    arguments = (_random(5, 3), _random(6, 3, seed=1), _random(6, seed=2), _random(3, seed=3))
    arguments = tuple(argument.requires_grad_() for argument in arguments)

    def sparse(*arguments):
        return _sparse_encoder(pattern, *arguments)

    assert torch.autograd.gradcheck(sparse, arguments)


def test_encode_without_biases():
    pattern = _latents(5, 6, 0.5)
    inputs, weights = _random(5, 3), _random(6, 3, seed=1).requires_grad_()
    upstream = _random(pattern.n_entries, seed=4)
    (gradient,) = torch.autograd.grad(encode_kept(pattern, inputs, weights, None, None).values, weights, upstream)
    torch.testing.assert_close(gradient, pattern.with_values(upstream).to_dense().T @ inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sums_repeat_bit_for_bit(dtype):
    latents = _latents(3000, 257, 0.05, dtype=dtype)
    atoms, rows = _random(257, 64, dtype=dtype), _random(3000, 64, seed=1, dtype=dtype)
    upstream = _random(latents.n_entries, dtype=dtype)

    def products():
        arguments = [atoms.clone().requires_grad_(), torch.zeros(257, dtype=dtype).requires_grad_()]
        encoded = encode_kept(latents, rows, *arguments, None).values
        return [
            decode_sparse(latents, atoms),
            transposed_product(latents, rows),
            kept_dot_products(latents, rows, atoms),
            *torch.autograd.grad(encoded, arguments, upstream),
        ]

    first = products()
    for _ in range(5):
        assert all(torch.equal(one, other) for one, other in zip(first, products(), strict=True))
