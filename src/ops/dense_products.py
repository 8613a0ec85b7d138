"""Dense products on the CPU by the faster of the two libraries that torch brings along.

torch multiplies float32 matrices on the CPU by MKL, which uses AVX-512 on Intel's processors only. oneDNN uses it on
all that have it: on an AMD EPYC (Zen 5) it takes 0.3 to 0.55 of MKL's time. Sums are float32 in both and differ in
their order. `torch.set_float32_matmul_precision` applies as it does to torch's products.
"""

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

# Multiply-adds of a product; below, oneDNN's preparation of a new shape (0.3 ms) takes longer than it saves.
_LEAST_WORK = 1 << 24


def matmul(
    left: Float[Tensor, "n k"], right: Float[Tensor, "k m"], bias: Float[Tensor, " m"] | None = None
) -> Float[Tensor, "n m"]:
    """Returns `left @ right + bias` [n, m], differentiable in all three.

    Args:
        left: [n, k].
        right: [k, m].
        bias: [m], or None.
    """
    if _takes_onednn(left, right):
        return _Product.apply(left, right, bias)  # pyright: ignore[reportReturnType]
    return left @ right if bias is None else torch.addmm(bias, left, right)


class FastLinearLayers(TorchFunctionMode):
    """A context in which the linear layers of any model multiply as `matmul` does.

    Those inside `torch.nn.MultiheadAttention` stay as they are.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Answers a call of a torch function inside the context."""
        if func is F.linear and not kwargs:
            inputs, weights, *bias = args
            rows = inputs.reshape(-1, inputs.shape[-1])
            if _takes_onednn(rows, weights.T):
                return matmul(rows, weights.T, *bias).view(*inputs.shape[:-1], len(weights))
        return func(*args, **(kwargs or {}))


def _takes_onednn(left: Tensor, right: Tensor) -> bool:
    return (
        left.device.type == "cpu"
        and left.dtype == right.dtype == torch.float32
        and left.numel() * right.shape[1] >= _LEAST_WORK
        and _is_faster()
        and torch.backends.mkldnn.enabled
        and not torch.is_autocast_enabled("cpu")
    )


@cache
def _is_faster() -> bool:
    # The operator is the one that torch.compile puts in place of linear layers; it has no public name.
    has_operator = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return has_operator and torch.backends.cpu.get_cpu_capability() == "AVX512"


def _product(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    if bias is None and not left.is_contiguous() and left.numel() > right.numel():
        # The operator copies a transposed first operand: let it be the smaller one.
        return _product(right.T, left.T).T.contiguous()
    return torch.ops.mkldnn._linear_pointwise(left, right.T, bias, "none", [], "")


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(left, right)
        return _product(left, right, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        left, right = ctx.saved_tensors
        to_left, to_right, to_bias = ctx.needs_input_grad
        return (
            _product(gradient, right.T) if to_left else None,
            _product(left.T, gradient) if to_right else None,
            gradient.sum(0) if to_bias else None,
        )
