"""How near reconstructions are to activations besides their explained variance, from sums over the whole set."""

import torch
from jaxtyping import Shaped
from torch import Tensor

from src.metrics.ratio import RatioOfSums
from src.ops.shapes import Rows, Scalar


class NormalizedMSE(RatioOfSums):
    """`sum ||x - x'||^2 / sum ||x||^2`: the squared error over that of predicting zero.

    FVU divides by the squared distance from the mean activation instead. The two meet on centred activations; where the
    mean is large, this one is far smaller and says little. One less it is what PatchSAE and CytoSAE log as explained
    variance, and SAELens' `evals.py` did up to 6.18. openai/sparse_autoencoder's loss of this name averages the ratios
    of the rows, which weights short rows up; "normalized MSE" in Gao et al. 2024 (arXiv 2406.04093) is FVU.
    """

    higher_is_better = False

    def terms(self, activations: Rows, reconstruction: Rows) -> tuple[Scalar, Shaped[Tensor, ""]]:
        """Returns both sums of a batch of activations and reconstructions, both [n_rows, d_in]."""
        x, y = _float64(activations, reconstruction)
        return (x - y).square().sum(), x.square().sum()


class CosineSimilarity(RatioOfSums):
    """The mean over rows of `<x, x'> / (||x|| ||x'||)`, as dictionary_learning, Prisma and MSAE report.

    A row without length, or with a reconstruction without length, counts as 0, as it does in torch. Blind to shrinkage:
    see `RelativeReconstructionBias` and `L2Ratio`.
    """

    higher_is_better = True

    def terms(self, activations: Rows, reconstruction: Rows) -> tuple[Scalar, int]:
        """Returns the sum of the rows' cosines and the number of rows, of both [n_rows, d_in]."""
        x, y = _float64(activations, reconstruction)
        lengths = x.norm(dim=1) * y.norm(dim=1)
        cosines = torch.where(lengths > 0, (x * y).sum(1) / lengths.clamp_min(torch.finfo(lengths.dtype).tiny), 0)
        return cosines.sum(), len(x)


class RelativeReconstructionBias(RatioOfSums):
    """`sum ||x'||^2 / sum <x, x'>`: the factor by which reconstructions are too long; below 1 they shrink.

    Dividing reconstructions by it makes their squared error least (Rajamanoharan et al. 2024, arXiv 2404.16014, section
    3.1). dictionary_learning's metric of this name, which averages it over batches.
    """

    def terms(self, activations: Rows, reconstruction: Rows) -> tuple[Scalar, Shaped[Tensor, ""]]:
        """Returns both sums of a batch of activations and reconstructions, both [n_rows, d_in]."""
        x, y = _float64(activations, reconstruction)
        return y.square().sum(), (x * y).sum()


class L2Ratio(RatioOfSums):
    """The mean over rows of `||x'|| / ||x||` (dictionary_learning). Rows without length have no ratio and do not count.

    Errors shorten it too: a perfect but for noise reconstruction is a projection, and shorter than its activation. What
    a common factor could mend is in `RelativeReconstructionBias`.
    """

    def terms(self, activations: Rows, reconstruction: Rows) -> tuple[Scalar, Shaped[Tensor, ""]]:
        """Returns the sum of the rows' ratios and the number of rows with one, of both [n_rows, d_in]."""
        x, y = _float64(activations, reconstruction)
        lengths = x.norm(dim=1)
        has_length = lengths > 0
        return (y.norm(dim=1)[has_length] / lengths[has_length]).sum(), has_length.sum()


def _float64(activations: Tensor, reconstruction: Tensor) -> tuple[Tensor, Tensor]:
    return activations.double(), reconstruction.double()
