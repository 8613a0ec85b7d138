import pytest
import torch

from src.models.mil.nystrom import NystromLayer


@pytest.mark.parametrize("n_tokens", [1, 2, 9, 31])
@pytest.mark.parametrize("train", [False, True])
def test_few_tokens_give_what_the_filled_sequence_gives(n_tokens, train, monkeypatch):
    torch.manual_seed(0)
    layer = NystromLayer(n_hidden=64, n_heads=4, dropout=0.0).double().train(train)  # 32 landmarks
    tokens = 3 * torch.randn(n_tokens, 64, dtype=torch.float64)
    found = []
    for attend in (NystromLayer._attend_few, NystromLayer._attend_many):
        monkeypatch.setattr(NystromLayer, "_attend_few", attend)
        layer.zero_grad()
        inputs = tokens.clone().requires_grad_()
        out, attention = layer(inputs)
        out.square().sum().backward()
        gradients = [parameter.grad.clone() for parameter in layer.parameters()]
        found.append([out, inputs.grad, *gradients, *([] if train else [attention])])
    for few, many in zip(*found, strict=True):
        torch.testing.assert_close(few, many, rtol=1e-9, atol=1e-9)


def test_as_many_tokens_as_landmarks_are_not_filled_up():
    layer = NystromLayer(n_hidden=16, n_heads=2, dropout=0.0).eval()
    out, attention = layer(torch.randn(8, 16))
    assert out.shape == (8, 16)
    assert attention.shape == (8,)
    assert bool(out.isfinite().all())
