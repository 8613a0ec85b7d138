"""Matryoshka BatchTopK: nested groups of neurons, each prefix of which reconstructs by itself."""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from src.models.saes.batch_topk import BatchTopK
from src.models.saes.shapes import Batch, Rows
from src.ops.dense_latents import Latents
from src.ops.shapes import Scalar
from src.ops.sparse_latents import SparseLatents
from src.ops.sparse_products import decode_sparse


class MatryoshkaBatchTopK(BatchTopK):
    """Matryoshka SAE with BatchTopK (Bussmann et al. 2025, arXiv 2503.17547).

    Neurons are cut into groups by id; group g's reconstruction is that of all groups up to it. The loss is the
    weighted mean over groups of their errors. dictionary_learning takes that mean over weights that sum to 1 already,
    and so divides by the number of groups twice; `conf/sae/matryoshka_dictlearn.yaml` does too.

    Args:
        d_in: dimension of the activations.
        n_latents: number of neurons; `expansion * d_in` when None.
        expansion: neurons per input dimension.
        k: latents kept per row, on average over the batch and all groups.
        group_fractions: share of the neurons in each group, cut down to whole neurons; the last group takes the rest.
            The default is that of sae-for-vlm.
        group_weights: weight of each group's error; all 1 when None.
        **options: of `KSparse`.

    Raises:
        ValueError: when the fractions do not sum to 1, a group is empty, or there is not one weight per group.
    """

    def __init__(
        self,
        d_in: int,
        n_latents: int | None = None,
        expansion: float = 4,
        k: int = 16,
        *,
        group_fractions: Sequence[float] = (0.0625, 0.125, 0.25, 0.5625),
        group_weights: Sequence[float] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(d_in, n_latents, expansion, k, **options)
        self.group_fractions = list(group_fractions)
        self.group_weights = [1.0] * len(self.group_fractions) if group_weights is None else list(group_weights)
        if abs(sum(self.group_fractions) - 1) > 1e-6:
            raise ValueError(f"Expected sae.group_fractions that sum to 1, got {self.group_fractions}.")
        if len(self.group_weights) != len(self.group_fractions):
            raise ValueError(
                f"Expected one of sae.group_weights for each of {len(self.group_fractions)} groups, got "
                f"{self.group_weights}."
            )
        sizes = [int(fraction * self.n_latents) for fraction in self.group_fractions[:-1]]
        sizes.append(self.n_latents - sum(sizes))
        if min(sizes) < 1:
            raise ValueError(f"Expected every group of sae.group_fractions to hold a neuron, got sizes {sizes}.")
        self.group_sizes = sizes

    def reconstructions(self, latents: Latents) -> list[Float[Tensor, "{latents.n_rows} {self.d_in}"]]:
        """Returns the reconstruction of each prefix of groups [n_rows, d_in], the whole one last."""
        if not isinstance(latents, SparseLatents):
            raise ValueError("Expected sparse latents, got dense ones.")
        starts = list(itertools.accumulate(self.group_sizes[:-1], initial=0))
        parts = decode_sparse(latents.by_groups(starts), self.atoms).view(latents.n_rows, len(starts), self.d_in)
        return list((parts.cumsum(1) + self.b_dec).unbind(1))

    def mean_error(self, reconstructions: Sequence[Rows], inputs: Batch) -> Scalar:
        """Returns the weighted mean of the prefixes' errors."""
        errors = [self.error(one.view(inputs.shape), inputs) for one in reconstructions]
        weights = errors[0].new_tensor(self.group_weights)
        return (torch.stack(errors) * weights).mean()
