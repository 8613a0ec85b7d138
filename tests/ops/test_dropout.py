import pytest
import torch

from src.ops.dropout import kept_units, relu_dropout


@pytest.mark.parametrize("p", [0.25, 0.3])
def test_units_are_kept_with_the_probability_asked_for(p):
    torch.manual_seed(0)
    kept = kept_units((1000, 512), p, torch.device("cpu"))
    # Five standard errors of a share of 512,000 draws; neighbours of one draw of 64 bits are independent.
    assert kept.double().mean().item() == pytest.approx(1 - p, abs=5 * (p * (1 - p) / 512_000) ** 0.5)
    pairs = kept[:, :-1] & kept[:, 1:]
    assert pairs.double().mean().item() == pytest.approx((1 - p) ** 2, abs=0.005)
    per_unit = kept.double().mean(0)
    assert (per_unit - (1 - p)).abs().max() < 0.08


def test_equal_seeds_draw_equal_units_also_in_pieces():
    torch.manual_seed(1)
    whole = kept_units((12, 16), 0.25, torch.device("cpu"))
    torch.manual_seed(1)
    pieces = [kept_units((4, 16), 0.25, torch.device("cpu")) for _ in range(3)]
    assert torch.equal(torch.cat(pieces), whole)
    assert not torch.equal(kept_units((12, 16), 0.25, torch.device("cpu")), whole)


def test_what_is_kept_is_scaled_and_has_its_gradient():
    torch.manual_seed(0)
    values = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    hidden = relu_dropout(values * 1, 0.25)
    kept = hidden > 0
    assert kept.any()
    torch.testing.assert_close(hidden[kept], values[kept] / 0.75)
    assert (hidden[~kept] == 0).all()
    gradient = torch.randn(7, 5, dtype=torch.float64)
    hidden.backward(gradient)
    torch.testing.assert_close(values.grad, torch.where(kept, gradient / 0.75, 0.0))


def test_pieces_change_nothing(monkeypatch):
    results = []
    for n_elements in (2**18, 24):  # all at once, and three rows at a time
        monkeypatch.setattr("src.ops.dropout._PIECE_ELEMENTS", n_elements)
        torch.manual_seed(0)
        values = torch.randn(10, 8, requires_grad=True)
        hidden = relu_dropout(values * 1, 0.25)
        hidden.backward(torch.arange(80.0).view(10, 8))
        results.append((hidden, values.grad))
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_gradient_without_dropout():
    values = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda one: relu_dropout(one * 1, 0.0), values)
