"""Fraction of variance unexplained, from sums over the whole set."""

import torch
from jaxtyping import Int
from torch import Tensor
from torchmetrics import Metric

from src.ops.shapes import PerInput, Rows, Scalar

_PIECE_ROWS = 1024  # taken to float64 at once


class FractionOfVarianceUnexplained(Metric):
    """FVU: squared error over squared distance from the mean activation, each summed over all rows and dimensions.

    `sum ||x - x'||^2 / sum ||x - mean(x)||^2`; explained variance is 1 - FVU. The mean is that of the whole set, so the
    number does not depend on the batches. The field's variants: a mean of per-batch or per-row ratios (SAELens'
    "legacy"), a variance about zero (PatchSAE; see `NormalizedMSE`), one about the batch's mean (sparsify's loss), and
    errors about their own mean, which forgives a constant offset (dictionary_learning's `frac_variance_explained`).

    Args:
        d_in: dimension of the activations.
    """

    full_state_update = False
    higher_is_better = False
    n_rows: Int[Tensor, ""]
    sums: PerInput
    squares: PerInput
    errors: Scalar

    def __init__(self, d_in: int) -> None:
        super().__init__()
        self.add_state("n_rows", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        # float64: the variance is a difference of two sums that may be far larger than it.
        self.add_state("sums", torch.zeros(d_in, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("squares", torch.zeros(d_in, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("errors", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, activations: Rows, reconstruction: Rows) -> None:
        """Adds rows: activations and their reconstruction, both [n_rows, d_in]."""
        self.n_rows += activations.shape[0]
        for rows, reconstructed in zip(activations.split(_PIECE_ROWS), reconstruction.split(_PIECE_ROWS), strict=True):
            exact = rows.double()
            self.sums += exact.sum(0)
            self.squares += exact.square().sum(0)
            self.errors += (exact - reconstructed).square().sum()

    def compute(self) -> Scalar:
        """Returns FVU, float64; NaN without rows or when all rows are equal: then it is undefined.

        Raises:
            ValueError: when an activation or a reconstruction was infinite or NaN, which a NaN would hide.
        """
        if not bool(self.errors.isfinite()):
            raise ValueError(
                f"Expected finite activations and reconstructions, got a squared error of {float(self.errors)} over "
                f"{int(self.n_rows)} rows: the SAE diverged in training, or activations are far larger than those "
                "that it was trained on. Look at the features, and at train.lr and train.max_grad_norm."
            )
        total = (self.squares - self.sums.square() / self.n_rows).sum()
        return self.errors / total if total > 0 else torch.full_like(self.errors, torch.nan)
