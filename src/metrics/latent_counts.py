"""What is counted over the latents of a whole set: L0, L1 and neurons that never fire."""

import torch
from jaxtyping import Int, Shaped
from torch import Tensor
from torchmetrics import Metric

from src.metrics.ratio import RatioOfSums
from src.ops.sparse_latents import SparseLatents


class L0(RatioOfSums):
    """The mean number of latents above zero per row.

    A listed entry of 0 does not count. openai/sparse_autoencoder counts from 1e-3 on, CytoSAE's class counts from 0.2.
    """

    def terms(self, latents: SparseLatents) -> tuple[Shaped[Tensor, ""], int]:
        """Returns the numbers of latents above zero and of rows."""
        return (latents.values > 0).sum(), latents.n_rows


class L1(RatioOfSums):
    """The mean over rows of the sum of a row's latents, `sum |f| / n_rows`.

    Not comparable between SAEs whose atoms differ in length: the April update's penalty and SAELens weight each latent
    with its atom's norm first.
    """

    def terms(self, latents: SparseLatents) -> tuple[Shaped[Tensor, ""], int]:
        """Returns the sum of absolute values and the number of rows."""
        return latents.values.double().abs().sum(), latents.n_rows


class L0Histogram(Metric):
    """The number of rows with 0, 1, 2, ... latents above zero.

    Args:
        n_latents: number of neurons.
    """

    full_state_update = False
    n_rows: Int[Tensor, " n_latents+1"]

    def __init__(self, n_latents: int) -> None:
        super().__init__()
        self.add_state("n_rows", torch.zeros(n_latents + 1, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, latents: SparseLatents) -> None:
        """Adds rows of latents [n_rows, n_latents]."""
        l0 = torch.bincount(latents.row_ids[latents.values > 0], minlength=latents.n_rows)
        self.n_rows += torch.bincount(l0, minlength=self.n_rows.numel())

    def compute(self) -> Int[Tensor, " n_counts"]:
        """Returns the counts [n_latents + 1], by L0."""
        return self.n_rows
