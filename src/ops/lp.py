"""Lp penalties of sparse latents."""

import torch
from jaxtyping import Float
from torch import Tensor

from src.ops.dense_latents import Latents
from src.ops.processes import mean_over_rows
from src.ops.shapes import Scalar
from src.ops.sparse_latents import SparseLatents


def mean_power_sum(
    latents: Latents, p: float, weights: Float[Tensor, " {latents.n_latents}"] | None = None, *, rooted: bool = False
) -> Scalar:
    """Returns the mean over rows of the sum of positive latents to the power p, or of its p-th root.

    Latents of 0 take no part, so that p below 1 gives them no gradient, and p = 0 counts the positive ones.

    Args:
        latents: their values are not negative.
        p: the power; above 0 when rooted.
        weights: [n_latents]; each latent counts times its neuron's.
        rooted: whether the p-th root of each row's sum is averaged.
    """
    values = latents.values if weights is None else latents.values * latents.per_neuron(weights)
    powers = _power_of_positive(values, p)
    if not rooted:
        return mean_over_rows(powers.sum(), latents.n_rows)
    if isinstance(latents, SparseLatents):
        sums = powers.new_zeros(latents.n_rows).index_add(0, latents.row_ids, powers)
    else:
        sums = powers.sum(1)
    return mean_over_rows(_power_of_positive(sums, 1 / p).sum(), latents.n_rows)


def _power_of_positive(values: Tensor, p: float) -> Tensor:
    is_positive = values > 0
    return torch.where(is_positive, values, 1.0).pow(p) * is_positive
