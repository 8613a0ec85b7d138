import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from src.ops import dense_products
from src.ops.dense_products import FastLinearLayers, matmul

_N, _K, _M = 300, 257, 240  # enough work for oneDNN


@pytest.fixture(params=[False, True], ids=["torch", "onednn"])
def uses_onednn(request, monkeypatch):
    if request.param and not torch.backends.mkldnn.is_available():
        pytest.skip("torch was built without oneDNN")
    monkeypatch.setattr(dense_products, "_is_faster", lambda: request.param)
    taken = []
    product = dense_products._product
    monkeypatch.setattr(dense_products, "_product", lambda *operands: taken.append(1) or product(*operands))
    yield request.param
    assert bool(taken) == request.param


def _operands(layout: str, n=_N, k=_K, m=_M) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    left, right, bias = (torch.randn(*shape, generator=generator) for shape in ((n, k), (k, m), (m,)))
    if layout == "transposed":
        return left.T.contiguous().T, right.T.contiguous().T, bias
    if layout == "strided":
        return left.repeat_interleave(2, dim=1)[:, ::2], right.repeat_interleave(2, dim=0)[::2], bias
    return (left[:1].expand(n, k), right, bias) if layout == "expanded" else (left, right, bias)


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "strided", "expanded"])
@pytest.mark.parametrize("with_bias", [False, True])
def test_products_and_gradients_are_float32_sums(uses_onednn, layout, with_bias):
    left, right, bias = (operand.requires_grad_() for operand in _operands(layout))
    asked = (left, right, bias) if with_bias else (left, right)
    outcome = matmul(*asked)
    upstream = torch.randn(_N, _M, generator=torch.Generator().manual_seed(1))
    gradients = torch.autograd.grad(outcome, asked, upstream)
    exact = [operand.detach().double().requires_grad_() for operand in asked]
    expected = exact[0] @ exact[1] + (exact[2] if with_bias else 0)
    expected_gradients = torch.autograd.grad(expected, exact, upstream.double())
    for found, wanted in zip((outcome, *gradients), (expected, *expected_gradients), strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-4)


def test_only_asked_gradients_are_made(uses_onednn):
    left, right, bias = _operands("contiguous")
    right.requires_grad_()
    outcome = matmul(left, right, bias)
    outcome.sum().backward()
    torch.testing.assert_close(right.grad, left.sum(0)[:, None].expand(_K, _M), rtol=1e-5, atol=1e-4)
    assert not matmul(left, right.detach()).requires_grad


def test_values_that_are_not_finite_stay_where_they_are(uses_onednn):
    left, right, _ = _operands("contiguous")
    left[3, 5], left[4, 6] = float("nan"), float("inf")
    outcome = matmul(left, right)
    assert outcome[3].isnan().all()
    assert outcome[4].isinf().all()
    assert outcome[[0, 1, 2, 5]].isfinite().all()


@pytest.mark.parametrize(
    ("dtype", "sizes"),
    [(torch.float64, (_N, _K, _M)), (torch.bfloat16, (_N, _K, _M)), (torch.float32, (5, 4, 3))],
)
def test_what_onednn_is_not_for_is_torchs_product(monkeypatch, dtype, sizes):
    monkeypatch.setattr(dense_products, "_is_faster", lambda: True)
    left, right, bias = (operand.to(dtype) for operand in _operands("contiguous", *sizes))
    assert torch.equal(matmul(left, right), left @ right)
    assert torch.equal(matmul(left, right, bias), torch.addmm(bias, left, right))


def test_autocast_is_obeyed(monkeypatch):
    monkeypatch.setattr(dense_products, "_is_faster", lambda: True)
    left, right, bias = _operands("contiguous")
    with torch.autocast("cpu", torch.bfloat16):
        assert matmul(left, right, bias).dtype == torch.bfloat16


@pytest.mark.parametrize("sizes", [(0, 4, 3), (5, 0, 3), (5, 4, 0)])
def test_empty_operands(sizes):
    n, _, m = sizes
    left, right, bias = _operands("contiguous", *sizes)
    assert torch.equal(matmul(left, right, bias), bias.expand(n, m))


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("leading", [(_N,), (2, 3, _N // 6)])
def test_linear_layers_multiply_faster_inside_the_context(uses_onednn, with_bias, leading):
    left, right, _ = _operands("contiguous")
    layer = torch.nn.Linear(_K, _M, bias=with_bias)
    layer.weight.data.copy_(right.T)
    inputs = left.view(*leading, _K)
    expected = layer(inputs)
    with FastLinearLayers():
        found = layer(inputs)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    found.sum().backward()
    torch.testing.assert_close(layer.weight.grad, left.sum(0).expand(_M, _K), rtol=1e-5, atol=1e-4)


def test_other_functions_are_as_they_are_inside_the_context():
    inputs, weights, bias = torch.randn(5, 3), torch.randn(4, 3), torch.randn(4)
    vector = torch.randn(3)
    with FastLinearLayers():
        assert torch.equal(F.linear(inputs, weight=weights, bias=bias), F.linear(inputs, weights, bias))
        assert F.linear(vector, weights).shape == (4,)
        assert torch.equal(F.relu(inputs), inputs.clamp_min(0))
    assert torch.equal(F.linear(inputs, weights), inputs @ weights.T)
