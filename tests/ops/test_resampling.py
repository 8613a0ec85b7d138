import pytest
import torch

from src.ops.resampling import draw_rows, forget_moments_, resample_


def test_rows_are_drawn_in_proportion_to_their_errors():
    errors = torch.tensor([0.0, 1.0, 3.0, 0.0])
    drawn = torch.cat([draw_rows(errors, 1, seed) for seed in range(2000)])
    assert set(drawn.tolist()) == {1, 2}
    # 0.75 with a standard deviation of 0.0097 over 2000 draws.
    assert float((drawn == 2).double().mean()) == pytest.approx(0.75, abs=0.04)


def test_rows_are_drawn_once_and_by_the_seed_alone():
    errors = torch.rand(40, generator=torch.Generator().manual_seed(0)) + 0.1
    drawn = draw_rows(errors, 30, seed=5)
    assert drawn.unique().numel() == drawn.numel() == 30
    torch.manual_seed(99)
    before = torch.get_rng_state()
    assert torch.equal(draw_rows(errors, 30, seed=5), drawn)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(draw_rows(errors, 30, seed=6), drawn)


@pytest.mark.parametrize(("errors", "n_drawn"), [([0.0, 2.0, 0.0, 1.0], 2), ([0.0, 0.0], 0), ([], 0)])
def test_no_more_rows_are_drawn_than_have_an_error(errors, n_drawn):
    drawn = draw_rows(torch.tensor(errors), 3, seed=0)
    assert drawn.shape == (n_drawn,)
    assert all(errors[row] > 0 for row in drawn.tolist())
    assert draw_rows(torch.tensor([1.0]), 0, seed=0).numel() == 0


def _weights():
    W_enc = torch.tensor([[3.0, 4.0], [9.0, 9.0], [0.0, 1.0]])
    return W_enc, torch.tensor([1.0, 2.0, 3.0]), torch.tensor([[1.0, 0.0], [5.0, 5.0], [0.0, 1.0]])


@pytest.mark.parametrize(
    # Living rows have lengths 5 and 1: 0.2 of their mean is 0.6; the input [0, 2] has length 2.
    ("unit_encoder_rows", "expected"),
    [(True, [0.0, 0.6]), (False, [0.0, 1.2])],
)
def test_a_neuron_is_pointed_at_its_input(unit_encoder_rows, expected):
    W_enc, b_enc, W_dec = _weights()
    dead = torch.tensor([1])
    resample_(W_enc, b_enc, W_dec, dead, torch.tensor([[0.0, 2.0]]), unit_encoder_rows=unit_encoder_rows)
    before = _weights()
    torch.testing.assert_close(W_enc[1], torch.tensor(expected))
    assert torch.equal(W_dec[1], torch.tensor([0.0, 1.0]))
    assert b_enc.tolist() == [1.0, 0.0, 3.0]
    for now, then in zip((W_enc, W_dec), (before[0], before[2]), strict=True):
        assert torch.equal(now[[0, 2]], then[[0, 2]])


def test_all_dead_and_none_dead_and_a_zero_input():
    W_enc, b_enc, W_dec = _weights()
    inputs = torch.tensor([[2.0, 0.0], [0.0, 0.0], [0.0, -3.0]])
    resample_(W_enc, b_enc, W_dec, torch.arange(3), inputs, unit_encoder_rows=True)
    assert torch.equal(W_dec, torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, -1.0]]))
    torch.testing.assert_close(W_enc, 0.2 * W_dec)  # no living row to take a length from: of length 1
    before = W_enc.clone()
    resample_(W_enc, b_enc, W_dec, torch.arange(0), inputs[:0], unit_encoder_rows=False)
    assert torch.equal(W_enc, before)


def test_parameters_are_changed_without_a_graph():
    W_enc, b_enc, W_dec = (torch.nn.Parameter(tensor) for tensor in _weights())
    resample_(W_enc, b_enc, W_dec, torch.tensor([0]), torch.ones(1, 2, requires_grad=True), unit_encoder_rows=True)
    assert all(parameter.is_leaf and parameter.requires_grad for parameter in (W_enc, b_enc, W_dec))


@pytest.mark.parametrize("fused", [False, True])
def test_moments_are_forgotten_where_asked(fused):
    parameter = torch.nn.Parameter(torch.ones(3, 2))
    optimizer = torch.optim.Adam([parameter], fused=fused)
    parameter.square().sum().backward()
    optimizer.step()
    step = float(optimizer.state[parameter]["step"])
    forget_moments_(optimizer, parameter, torch.tensor([0, 2]))
    for name in ("exp_avg", "exp_avg_sq"):
        moments = optimizer.state[parameter][name]
        assert not moments[[0, 2]].any()
        assert moments[1].all()
    assert float(optimizer.state[parameter]["step"]) == step
