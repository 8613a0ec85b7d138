"""JumpReLU and the step function with straight-through gradients of their threshold.

Rajamanoharan et al. 2024 (arXiv 2407.14435), equations 11 and 12, with the rectangle as the kernel: an entry z trains
the threshold when it lies within half a bandwidth of it, strictly.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from src.ops.shapes import PerNeuron

Values = Float[Tensor, "*shape"]
Thresholds = Float[Tensor, "*#shape"]
"""Of a shape that broadcasts to that of the values."""


def jump(pre_latents: Values, threshold: Thresholds, bandwidth: float, *, rectify: bool = False) -> Values:
    """Returns the pre-latents z that are strictly above a threshold, and 0 elsewhere.

    With g the gradient of a result, z receives g where it is kept, and the threshold the sum of
    `-threshold / bandwidth * g` over the entries in its window.

    Args:
        pre_latents: [...].
        threshold: of a shape that broadcasts to that of the pre-latents.
        bandwidth: width of the window, in the units of the pre-latents.
        rectify: take z as the ReLU of the pre-latents, so that all negative ones share a window with 0 (sae-1n).
    """
    return _Jump.apply(pre_latents, threshold, bandwidth, rectify)  # pyright: ignore[reportReturnType]


def step(values: Values, threshold: Thresholds, bandwidth: float) -> Values:
    """Returns 1 where values are strictly above a threshold, else 0.

    With g the gradient of a result, the threshold receives the sum of `-g / bandwidth` over the values in its window;
    the values receive none.

    Args:
        values: [...].
        threshold: of a shape that broadcasts to that of the values.
        bandwidth: width of the window, in the units of the values.
    """
    return _Step.apply(values, threshold, bandwidth)  # pyright: ignore[reportReturnType]


def exp_with_unit_gradient(logarithm: Values) -> Values:
    """Returns `exp(logarithm)`, and passes gradients on without the chain factor, as sae-1n and BatchTopK do."""
    return _ExpWithUnitGradient.apply(logarithm)  # pyright: ignore[reportReturnType]


def window_floor(threshold: PerNeuron, bandwidth: float) -> PerNeuron:
    """Returns a floor [n_latents] that all pre-latents within a threshold's window are above, rounding included."""
    margin = 4 * torch.finfo(threshold.dtype).eps * (threshold.abs() + bandwidth)
    return threshold - bandwidth / 2 - margin


def _within_window(gradient: Tensor, values: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """Returns the gradient where a value lies in its threshold's window, and 0 elsewhere."""
    return gradient.masked_fill((values - threshold).abs() >= bandwidth / 2, 0)


class _Jump(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pre_latents: Tensor, threshold: Tensor, bandwidth: float, rectify: bool) -> Tensor:
        ctx.save_for_backward(pre_latents, threshold)
        ctx.bandwidth, ctx.rectify = bandwidth, rectify
        values = pre_latents.clamp_min(0) if rectify else pre_latents
        return values.masked_fill(values <= threshold, 0)  # what is not a number stays so

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        pre_latents, threshold = ctx.saved_tensors
        values = pre_latents.clamp_min(0) if ctx.rectify else pre_latents
        to_pre_latents, to_threshold = None, None
        if ctx.needs_input_grad[0]:
            dropped = values <= threshold
            to_pre_latents = gradient.masked_fill(dropped | (pre_latents <= 0) if ctx.rectify else dropped, 0)
        if ctx.needs_input_grad[1]:
            in_window = _within_window(gradient, values, threshold, ctx.bandwidth)
            to_threshold = -(threshold / ctx.bandwidth) * in_window.sum_to_size(threshold.shape)
        return to_pre_latents, to_threshold, None, None


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(values, threshold)
        ctx.bandwidth = bandwidth
        return (values > threshold).to(values.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        values, threshold = ctx.saved_tensors
        if not ctx.needs_input_grad[1]:
            return None, None, None
        in_window = _within_window(gradient, values, threshold, ctx.bandwidth)
        return None, -in_window.sum_to_size(threshold.shape) / ctx.bandwidth, None


class _ExpWithUnitGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logarithm: Tensor) -> Tensor:  # noqa: ARG004
        return logarithm.exp()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # noqa: ARG004
        return gradient
