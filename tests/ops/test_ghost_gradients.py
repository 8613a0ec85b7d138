import pytest
import torch

from src.ops.ghost_gradients import ghost_loss


def _random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_one_row_by_hand():
    # One dead neuron: exp(0) * [0, 1], scaled to half the residual's norm 5: [0, 2.5] (less a guard of 1e-6).
    residual, atoms = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 1.0]], requires_grad=True)
    pre_latents, errors = torch.tensor([[0.0]], requires_grad=True), torch.tensor([[2.0, 6.0]])
    loss = ghost_loss(pre_latents, atoms, residual, errors)
    # Each element has the value of the main error's; so the mean is that of the main error.
    torch.testing.assert_close(loss, torch.tensor(4.0))
    loss.backward()
    # Element 1: weight 6 / (1.5^2 / 5 = 0.45), and d(ghost error) = 2 * (2.5 - 4) / 5 * 2.5 per unit of the logarithm.
    expected = 0.5 * (6 / 0.45) * (2 * (2.5 - 4) / 5) * 2.5
    torch.testing.assert_close(pre_latents.grad, torch.tensor([[expected]]), rtol=1e-4, atol=0)
    # Element 0 of the atom: weight 2 / (9 / 5), d = 2 * (0 - 3) / 5 times the scale 2.5.
    expected = 0.5 * (2 / 1.8) * (2 * -3 / 5) * 2.5
    torch.testing.assert_close(atoms.grad[0, 0], torch.tensor(expected), rtol=1e-4, atol=0)


def test_gradient_descent_turns_dead_atoms_to_the_residual():
    residual = _random(20, 4)
    pre_latents, atoms = _random(20, 3, seed=2), _random(3, 4, seed=3).requires_grad_()

    @torch.no_grad()
    def distance():
        ghosts = pre_latents.exp() @ atoms
        ghosts = ghosts * residual.norm(dim=1, keepdim=True) / (2 * ghosts.norm(dim=1, keepdim=True))
        return float((ghosts - residual).square().sum())

    before = distance()
    optimizer = torch.optim.SGD([atoms], lr=1e-2)
    for _ in range(20):
        optimizer.zero_grad()
        ghost_loss(pre_latents, atoms, residual, residual.square()).backward()
        optimizer.step()
    assert distance() < before


def test_residual_and_errors_receive_no_gradient():
    residual, errors = _random(5, 3).requires_grad_(), _random(5, 3, seed=1).square().requires_grad_()
    pre_latents, atoms = _random(5, 2, seed=2).requires_grad_(), _random(2, 3, seed=3).requires_grad_()
    ghost_loss(pre_latents, atoms, residual, errors).backward()
    assert residual.grad is None
    assert errors.grad is None
    assert pre_latents.grad.all()
    assert atoms.grad.all()


def test_exponents_are_bounded():
    pre_latents = torch.tensor([[19.9], [20.1], [1e4]], dtype=torch.float64, requires_grad=True)
    loss = ghost_loss(pre_latents, _random(1, 3), _random(3, 3, seed=1), _random(3, 3, seed=2).square())
    loss.backward()
    assert loss.isfinite()
    assert pre_latents.grad[0] != 0
    assert not pre_latents.grad[1:].any()


def test_a_perfect_reconstruction_and_no_dead_neurons():
    pre_latents, atoms = _random(4, 2).requires_grad_(), _random(2, 3, seed=1).requires_grad_()
    loss = ghost_loss(pre_latents, atoms, torch.zeros(4, 3).double(), torch.zeros(4, 3).double())
    loss.backward()
    assert loss.item() == 0
    assert not pre_latents.grad.any()
    assert not atoms.grad.any()
    nothing = ghost_loss(_random(4, 0), _random(0, 3), _random(4, 3, seed=1), torch.ones(4, 3).double())
    assert nothing.item() == pytest.approx(1, rel=1e-4)
