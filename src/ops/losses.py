"""Loss terms of sparse autoencoders; means are over the rows of all processes (see `src.ops.processes`)."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from src.ops.dense_latents import Latents, decode
from src.ops.dense_products import matmul
from src.ops.processes import all_sum, mean_over_rows
from src.ops.shapes import Batch, Rows, Scalar
from src.ops.sparse_latents import SparseLatents

# Below this share of non-zero latents AuxK decodes sparse: on two CPU cores the products cost the same there.
_SPARSE_AUXK_SHARE = 0.12


def mean_squared_error(reconstruction: Batch, inputs: Batch) -> Scalar:
    """Returns the squared error averaged over rows and dimensions, both [..., d_in].

    BatchTopK (Bussmann et al. 2024), sae-1n, DN-CBM and saev average over both.
    """
    return summed_squared_error(reconstruction, inputs) / inputs.shape[-1]


def summed_squared_error(reconstruction: Batch, inputs: Batch) -> Scalar:
    """Returns the squared error summed over d_in and averaged over rows (dictionary_learning, SAELens).

    Both are [..., d_in]; of image blocks [n_images, n_tokens, d_in] every token is a row.
    """
    return mean_over_rows(_SumOfSquares.apply(reconstruction - inputs), inputs.shape[:-1].numel())


def norm_scaled_errors(reconstruction: Batch, inputs: Batch, class_token_weight: float = 1.0) -> Batch:
    """Returns the elements of PatchSAE's error: each squared error over the L2 norm of its input row (not squared).

    Args:
        reconstruction: [..., d_in].
        inputs: [..., d_in]; of [n_images, n_tokens, d_in], token 0 is the class token.
        class_token_weight: what the class token's elements are multiplied by.

    Returns:
        [..., d_in]; the error is their mean.
    """
    norms = torch.linalg.vector_norm(inputs, dim=-1, keepdim=True).clamp_min(1e-6)
    errors = (reconstruction - inputs).square() / norms
    if class_token_weight == 1:
        return errors
    weights = errors.new_ones(errors.shape[-2], 1)
    weights[0] = class_token_weight
    return errors * weights


def mean_of_elements(elements: Float[Tensor, "*rows d"]) -> Scalar:
    """Returns the mean over rows and dimensions of elements [..., d]."""
    n_rows = elements.shape[:-1].numel()
    return mean_over_rows(elements.sum(), n_rows) / elements.shape[-1]


def mean_l1(latents: Latents, weights: Float[Tensor, " {latents.n_latents}"] | None = None) -> Scalar:
    """Returns the mean over rows of the sum of (non-negative) latents, each times its neuron's weight [n_latents]."""
    values = latents.values if weights is None else latents.values * latents.per_neuron(weights)
    return mean_over_rows(values.sum(), latents.n_rows)


def auxk_reconstruction(
    dead_pre_latents: Float[Tensor, "n_rows n_dead"], dead_atoms: Float[Tensor, "n_dead d_in"], k_aux: int
) -> Rows:
    """AuxK: what dead neurons make of the input (Gao et al. 2024, arXiv 2406.04093, section A.2).

    Per row the `k_aux` largest of their ReLU'd pre-latents are decoded, without a bias.

    Args:
        dead_pre_latents: [n_rows, n_dead].
        dead_atoms: [n_dead, d_in], their decoder rows.
        k_aux: the most latents to keep per row.

    Returns:
        [n_rows, d_in].
    """
    n_rows, n_dead = dead_pre_latents.shape
    if k_aux >= n_dead:
        return matmul(F.relu(dead_pre_latents), dead_atoms)
    largest, neuron_ids = F.relu(dead_pre_latents).topk(k_aux, dim=1, sorted=False)
    if k_aux < _SPARSE_AUXK_SHARE * n_dead:
        row_offsets = torch.arange(n_rows + 1, device=largest.device) * k_aux
        neuron_ids, order = neuron_ids.sort(dim=1)
        values = largest.gather(1, order).reshape(-1)
        return decode(SparseLatents(row_offsets, neuron_ids.reshape(-1), values, (n_rows, n_dead)), dead_atoms)
    return matmul(largest.new_zeros(n_rows, n_dead).scatter(1, neuron_ids, largest), dead_atoms)


def unexplained_share(target: Float[Tensor, "n_rows d"], reconstruction: Float[Tensor, "n_rows d"]) -> Scalar:
    """Returns the squared error of a target [n_rows, d] over the target's variance about its mean, both of the batch.

    0 where the target does not vary (dictionary_learning's AuxK, after Gao et al. 2024).
    """
    error = all_sum((target - reconstruction).square().sum())
    # A constant: the derivative of the variance by the mean is 0.
    mean = mean_over_rows(target.detach().sum(0), target.shape[0])
    variance = all_sum((target - mean).square().sum())
    is_constant = variance == 0
    return torch.where(is_constant, 0.0, error / torch.where(is_constant, 1.0, variance))


class _SumOfSquares(torch.autograd.Function):
    """The sum of squares, in half the passes over memory that `F.mse_loss` and its gradient take."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        ctx.save_for_backward(values)
        return values.to(torch.promote_types(values.dtype, torch.float32)).square().sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (values,) = ctx.saved_tensors
        return values * (2 * gradient).to(values.dtype)
