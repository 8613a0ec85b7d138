import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from src.ops.dense_latents import DenseLatents, decode, encode_columns, encode_dense
from src.ops.sparse_latents import SparseLatents
from src.ops.sparse_products import encode_kept


def _random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def _weights(n_latents, d_in, seed=0, dtype=torch.float64):
    """W_enc, b_enc, b_dec and W_dec that ask for gradients."""
    shapes = ((n_latents, d_in), (n_latents,), (d_in,), (n_latents, d_in))
    return [_random(*shape, seed=seed + i, dtype=dtype).requires_grad_() for i, shape in enumerate(shapes)]


def test_dense_encoding_by_gradcheck():
    # The subtraction is part of what is checked: b_dec's gradient stands for that of the inputs.
    x, (W_enc, b_enc, b_dec, _) = _random(5, 3), _weights(7, 3)
    assert torch.autograd.gradcheck(lambda W, b, d: encode_dense(x - d.detach(), W, b, d), (W_enc, b_enc, b_dec))
    assert torch.autograd.gradcheck(lambda W: encode_dense(x, W, None, None), (W_enc,))
    assert torch.autograd.gradcheck(lambda W, b: encode_dense(x, W, b, None), (W_enc, b_enc))
    assert torch.autograd.gradcheck(lambda W, d: encode_dense(x - d.detach(), W, None, d), (W_enc, b_dec))


def _columns(x, ids, W_enc, b_enc, b_dec):
    """Beside a dense product of W_enc, as in a training step: its own gradient of W_enc is sparse."""
    inputs = x if b_dec is None else x - b_dec.detach()
    known = torch.nn.functional.linear(inputs, W_enc, b_enc).detach()[:, ids]
    return encode_columns(known, ids, inputs, W_enc, b_enc, b_dec) + W_enc.square().sum()


def test_column_encoding_by_gradcheck():
    x, ids, (W_enc, b_enc, b_dec, _) = _random(5, 3), torch.tensor([6, 0, 3]), _weights(7, 3)
    # Without an upstream gradient W_enc's is sparse, and gradcheck's comparison with 0 knows dense ones only.
    check = functools.partial(torch.autograd.gradcheck, check_undefined_grad=False)
    assert check(lambda W, b, d: _columns(x, ids, W, b, d), (W_enc, b_enc, b_dec))
    assert check(lambda W: _columns(x, ids, W, None, None), (W_enc,))
    assert check(lambda W, d: _columns(x, ids, W, None, d), (W_enc, b_dec))


def test_column_encoding_touches_the_asked_neurons_only():
    x, (W_enc, b_enc, b_dec, _) = _random(5, 3), _weights(7, 3)
    asked = encode_columns(torch.zeros(5, 2, dtype=torch.float64), torch.tensor([1, 4]), x, W_enc, b_enc, b_dec)
    asked.sum().backward()
    assert W_enc.grad.to_dense().any(1).nonzero().squeeze(1).tolist() == [1, 4]
    assert b_enc.grad.nonzero().squeeze(1).tolist() == [1, 4]


def _rows(kind, n_rows, d_in, seed, dtype=torch.float64):
    if kind == "duplicated":
        return _random(1, d_in, seed=seed, dtype=dtype).expand(n_rows, d_in)
    if kind == "transposed":
        return _random(d_in, n_rows, seed=seed, dtype=dtype).T
    if kind == "strided":
        return _random(n_rows, 2 * d_in, seed=seed, dtype=dtype)[:, ::2]
    return _random(n_rows, d_in, seed=seed, dtype=dtype)


def _both_ways(x, floor, weights):
    """Per kind of latents: reconstruction and all gradients of its squared error, entries above a floor kept."""
    W_enc, b_enc, b_dec, W_dec = weights
    inputs = x - b_dec.detach()
    dense = encode_dense(inputs, W_enc, b_enc, b_dec)
    listed = (dense > floor) & (dense > 0)
    kept = SparseLatents.from_dense(torch.where(listed, dense, 0.0).detach())
    for latents in (DenseLatents(dense * listed), encode_kept(kept, inputs, W_enc, b_enc, b_dec)):
        reconstruction = decode(latents, W_dec) + b_dec
        gradients = torch.autograd.grad((reconstruction - x).square().sum(), weights)
        yield latents, [latents.to_dense(), reconstruction, *gradients]


_KINDS = st.sampled_from(["contiguous", "duplicated", "transposed", "strided"])


@settings(deadline=None)
@given(st.integers(0, 9), st.integers(1, 12), st.integers(1, 5), _KINDS, st.floats(-4, 4), st.integers(0, 2**31))
def test_sparse_and_dense_latents_give_the_same(n_rows, n_latents, d_in, kind, floor, seed):
    x = _rows(kind, n_rows, d_in, seed)
    (dense, dense_results), (sparse, sparse_results) = _both_ways(x, floor, _weights(n_latents, d_in, seed))
    for ours, theirs in zip(sparse_results, dense_results, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert dense.shape == sparse.shape == (n_rows, n_latents)
    weights = _random(n_latents, seed=seed)
    weighted = [latents.with_values(latents.values * latents.per_neuron(weights)) for latents in (dense, sparse)]
    torch.testing.assert_close(weighted[0].to_dense(), weighted[1].to_dense())


@pytest.mark.parametrize("floor", [-1.0, 2.0, 6.0, 1e9])
def test_sparse_and_dense_latents_agree_in_single_precision(floor):
    weights = _weights(96, 24, dtype=torch.float32)
    (_, dense), (_, sparse) = _both_ways(_rows("transposed", 80, 24, 9, torch.float32), floor, weights)
    for ours, theirs in zip(sparse, dense, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * float(theirs.detach().abs().max()))


def test_detach_and_views():
    values = torch.tensor([[1.0, 0.0], [2.0, 3.0], [-1.0, -1.0]], requires_grad=True)
    latents = DenseLatents(values)
    assert (latents.n_rows, latents.n_latents) == (3, 2)
    assert not latents.detach().values.requires_grad
