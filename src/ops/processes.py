"""Sums over the processes that share a batch; in one process they give back what they get.

A batch of several processes is the concatenation of their rows in rank order; a process may hold fewer rows than the
others, or none. All functions are collective: every process of torch.distributed's default group must call them in the
same order, so what decides whether one is called must itself be the same everywhere.

A loss made with `all_sum` has the whole batch's value in every process, and the gradient of the process's own rows. The
sum of these gradients over the processes (`all_sum_gradients_`) is the gradient of the loss.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Shaped
from torch import Tensor

from src.ops.shapes import AnyShape


def n_processes() -> int:
    """Returns the number of processes, 1 where torch.distributed is not set up."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Returns this process's place among them."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def all_sum(tensor: AnyShape) -> AnyShape:
    """Returns the sum of all processes' tensors of one shape.

    A gradient is passed on as it is, to this process's term. That is right where the loss is a function of such sums;
    it would not be for sums of what was made from other sums.
    """
    return tensor if n_processes() == 1 else _AllSum.apply(tensor)  # pyright: ignore[reportReturnType]


@torch.no_grad()
def all_max(tensor: AnyShape) -> AnyShape:
    """Returns the elementwise maximum of all processes' tensors of one shape, without a gradient."""
    return tensor if n_processes() == 1 else _reduced(tensor, dist.ReduceOp.MAX)


@torch.no_grad()
def all_min(tensor: AnyShape) -> AnyShape:
    """Returns the elementwise minimum of all processes' tensors of one shape, without a gradient."""
    return tensor if n_processes() == 1 else _reduced(tensor, dist.ReduceOp.MIN)


def all_counts(*counts: int, like: Tensor) -> tuple[int, ...]:
    """Returns the sums of all processes' numbers.

    Args:
        *counts: this process's.
        like: a tensor on the device that the processes talk through.
    """
    if n_processes() == 1:
        return counts
    return tuple(_reduced(torch.tensor(counts, device=like.device), dist.ReduceOp.SUM).tolist())


def mean_over_rows(total: AnyShape, n_rows: int) -> Float[Tensor, "*shape"]:
    """Returns the mean over the rows of all processes of what each has summed over its own `n_rows`; 0 without rows.

    The gradient is that of `all_sum`.

    Args:
        total: 0-d, or a vector of sums.
        n_rows: the rows of this process.
    """
    if n_processes() == 1:
        return total / max(n_rows, 1)
    if total.dtype in (torch.bfloat16, torch.float16):  # in which numbers of rows are not exact
        total = total.float()
    both = all_sum(torch.cat([total.reshape(-1), total.new_tensor([n_rows])]))
    return both[:-1].view_as(total) / both[-1].clamp_min(1)


@torch.no_grad()
def gather_rows(rows: Shaped[Tensor, " n_rows *row"]) -> Shaped[Tensor, " n_all_rows *row"]:
    """Returns all processes' rows [n_all_rows, ...] in rank order, without a gradient.

    Args:
        rows: [n_rows, ...]; the number of rows may differ between processes.
    """
    if n_processes() == 1:
        return rows
    mine = torch.tensor([rows.shape[0]], device=rows.device)
    sizes = [torch.zeros_like(mine) for _ in range(n_processes())]
    dist.all_gather(sizes, mine)
    lengths = [int(size) for size in sizes]
    padded = rows.new_zeros(max(lengths), *rows.shape[1:])
    padded[: rows.shape[0]] = rows
    pieces = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(pieces, padded)
    return torch.cat([piece[:length] for piece, length in zip(pieces, lengths, strict=True)])


@torch.no_grad()
def all_sum_gradients_(parameters: Iterable[Tensor]) -> None:
    """Replaces the gradients by their sums over all processes, in place: one flat tensor per type.

    Parameters without a gradient have none in any process, since all processes make the same graph.
    """
    if n_processes() == 1:
        return
    by_type: dict[torch.dtype, list[Tensor]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            by_type.setdefault(parameter.grad.dtype, []).append(parameter.grad)
    for gradients in by_type.values():
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        dist.all_reduce(flat)
        pieces = flat.split([gradient.numel() for gradient in gradients])
        for gradient, piece in zip(gradients, pieces, strict=True):
            gradient.copy_(piece.view_as(gradient))


def _reduced(tensor: Tensor, operation: Any) -> Tensor:
    result = tensor.detach().clone()
    dist.all_reduce(result, operation)
    return result


class _AllSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:  # noqa: ARG004
        return _reduced(tensor, dist.ReduceOp.SUM)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # noqa: ARG004
        return gradient
