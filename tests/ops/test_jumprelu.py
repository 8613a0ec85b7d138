import pytest
import torch

from src.ops.jumprelu import exp_with_unit_gradient, jump, step, window_floor

BANDWIDTH = 0.3


@pytest.fixture
def entries():
    generator = torch.Generator().manual_seed(0)
    pre_latents = torch.randn(40, 7, generator=generator, dtype=torch.float64) * 0.4
    threshold = torch.tensor([0.4, 0.2, 0.149, 0.05, 0.0, -0.05, -0.4], dtype=torch.float64)
    pre_latents[0], pre_latents[1] = threshold, 0.0
    gradient = torch.randn(40, 7, generator=generator, dtype=torch.float64)
    return pre_latents.requires_grad_(), threshold.requires_grad_(), gradient


def _loop(pre_latents, threshold, gradient, rectify):
    """The formulas, one entry at a time."""
    values, to_pre_latents = torch.zeros_like(pre_latents), torch.zeros_like(pre_latents)
    to_threshold, to_step = torch.zeros_like(threshold), torch.zeros_like(threshold)
    for row in range(len(pre_latents)):
        for neuron, theta in enumerate(threshold.tolist()):
            z, g = float(pre_latents[row, neuron]), float(gradient[row, neuron])
            if rectify:
                z = max(z, 0.0)
            if z > theta:
                values[row, neuron] = z
                to_pre_latents[row, neuron] = g if not rectify or z > 0 else 0.0
            if abs(z - theta) < BANDWIDTH / 2:
                to_threshold[neuron] -= theta / BANDWIDTH * g
                to_step[neuron] -= g / BANDWIDTH
    return values, to_pre_latents, to_threshold, to_step


@pytest.mark.parametrize("rectify", [False, True])
def test_values_and_gradients_follow_the_formulas(entries, rectify):
    pre_latents, threshold, gradient = entries
    values, to_pre_latents, to_threshold, to_step = _loop(*(x.detach() for x in entries), rectify)
    assert to_threshold.count_nonzero() >= 5
    result = jump(pre_latents, threshold, BANDWIDTH, rectify=rectify)
    torch.testing.assert_close(result, values, rtol=0, atol=0)
    result.backward(gradient)
    torch.testing.assert_close(pre_latents.grad, to_pre_latents, rtol=0, atol=0)
    torch.testing.assert_close(threshold.grad, to_threshold, rtol=1e-12, atol=1e-12)

    pre_latents.grad, threshold.grad = None, None
    seen = pre_latents.clamp_min(0) if rectify else pre_latents
    result = step(seen, threshold, BANDWIDTH)
    torch.testing.assert_close(result, (seen > threshold).double(), rtol=0, atol=0)
    result.backward(gradient)
    assert pre_latents.grad is None or not pre_latents.grad.any()
    torch.testing.assert_close(threshold.grad, to_step, rtol=1e-12, atol=1e-12)


def test_a_threshold_per_entry_gives_the_same(entries):
    pre_latents, threshold, gradient = entries
    for function in (jump, step):
        shared = torch.autograd.grad(function(pre_latents, threshold, BANDWIDTH), threshold, gradient)[0]
        each = threshold.expand(40, 7)
        result = function(pre_latents.reshape(-1), each.reshape(-1), BANDWIDTH)
        torch.testing.assert_close(torch.autograd.grad(result, threshold, gradient.reshape(-1))[0], shared)


def test_jump_is_differentiated_exactly_away_from_thresholds(entries):
    pre_latents, threshold, _ = entries
    far = pre_latents.detach()
    far = (far + torch.where(far < 0, -0.6, 0.6)).requires_grad_()  # no window holds any of it
    assert torch.autograd.gradcheck(lambda z, theta: jump(z, theta, BANDWIDTH), (far, threshold))


def test_the_exponential_passes_its_gradient_on():
    logarithm = torch.tensor([-2.0, 0.5], requires_grad=True)
    result = exp_with_unit_gradient(logarithm)
    torch.testing.assert_close(result, logarithm.exp())
    result.backward(torch.tensor([3.0, 4.0]))
    torch.testing.assert_close(logarithm.grad, torch.tensor([3.0, 4.0]))


def test_all_of_a_window_is_above_its_floor():
    generator = torch.Generator().manual_seed(0)
    for bandwidth in (1e-3, 0.05, 3.0):
        threshold = torch.rand(500, generator=generator) * 4 - 1
        edge = threshold - bandwidth / 2
        for _ in range(4):  # floats at and around the lower edge
            inside = (edge - threshold).abs() < bandwidth / 2
            assert bool((edge > window_floor(threshold, bandwidth))[inside].all())
            edge = edge.nextafter(threshold)
