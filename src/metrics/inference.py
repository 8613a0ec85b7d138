"""Everything that is measured of an SAE at inference, over one stream of rows."""

import torch
from torch import nn

from src.metrics.firing import FiringCounts
from src.metrics.histogram import Histogram
from src.metrics.latent_counts import L0, L1, L0Histogram
from src.metrics.reconstruction import CosineSimilarity, L2Ratio, NormalizedMSE, RelativeReconstructionBias
from src.metrics.variance_unexplained import FractionOfVarianceUnexplained
from src.models.saes.base import SAE
from src.ops.shapes import Rows
from src.ops.sparse_latents import SparseLatents

# Of a dense piece of pre-latents: 16 MiB.
_PIECE_VALUES = 1 << 22


class InferenceMetrics(nn.Module):
    """Metrics of reconstructions and of latents, which see every row once.

    Errors are in the units of `SAE.standardize`, as in training and encode; `raw_explained_variance` is in those of the
    activations. Where the SAE's inputs are centred, NMSE comes close to FVU.

    Args:
        sae: the SAE that is measured.
        almost_dead_below: see `FiringCounts`.
        dense_above: see `FiringCounts`.
    """

    def __init__(self, sae: SAE, almost_dead_below: float = 1e-5, dense_above: float = 0.1) -> None:
        super().__init__()
        self.fvu = FractionOfVarianceUnexplained(sae.d_in)
        self.raw_fvu = FractionOfVarianceUnexplained(sae.d_in)
        self.nmse = NormalizedMSE()
        self.cosine = CosineSimilarity()
        self.relative_reconstruction_bias = RelativeReconstructionBias()
        self.l2_ratio = L2Ratio()
        self.l0, self.l1 = L0(), L1()
        self.l0_histogram = L0Histogram(sae.n_latents)
        self.firing = FiringCounts(sae.n_latents, almost_dead_below, dense_above)

    def update(self, sae: SAE, activations: Rows, latents: SparseLatents, reconstruction: Rows) -> None:
        """Adds rows: raw activations and reconstructions [n_rows, d_in], and latents [n_rows, n_latents]."""
        self.raw_fvu.update(activations, reconstruction)
        activations, reconstruction = sae.standardize(activations), sae.standardize(reconstruction)
        for metric in (self.fvu, self.nmse, self.cosine, self.relative_reconstruction_bias, self.l2_ratio):
            metric.update(activations, reconstruction)
        for metric in (self.l0, self.l1, self.l0_histogram, self.firing):
            metric.update(latents)

    def results(self) -> dict[str, float]:
        """Returns the final numbers by name."""
        fvu = float(self.fvu.compute())
        names = ("nmse", "cosine", "relative_reconstruction_bias", "l2_ratio", "l0", "l1")
        return (
            {"explained_variance": 1 - fvu, "fvu": fvu, "raw_explained_variance": 1 - float(self.raw_fvu.compute())}
            | {name: float(getattr(self, name).compute()) for name in names}
            | {name: value.item() for name, value in self.firing.compute().items()}
        )


@torch.no_grad()
def pre_latent_histograms(
    sae: SAE, activations: Rows, n_bins: int = 200, n_pilot_rows: int = 1024
) -> tuple[Histogram, Histogram]:
    """Counts pre-latents, in small dense pieces.

    The bins span the pre-latents of the first `n_pilot_rows` rows; what lies beyond is in the end bins.

    Args:
        sae: the SAE.
        activations: [n_rows, d_in], raw.
        n_bins: number of bins.
        n_pilot_rows: rows that fix the bins.

    Returns:
        The histogram of all pre-latents, and that of those whose latents are above zero.
    """
    pieces = activations.split(max(1, _PIECE_VALUES // sae.n_latents))
    pilot = activations[:n_pilot_rows].split(len(pieces[0]))
    extremes = torch.stack([torch.stack(sae.pre_latents(rows).aminmax()) for rows in pilot])
    low, high = float(extremes.min()), float(extremes.max())
    if low == high:
        low, high = low - 0.5, high + 0.5
    counts, active = (Histogram(low, high, n_bins).to(activations.device) for _ in range(2))
    for rows in pieces:
        pre_latents, latents = sae.pre_latents(rows), sae.encode(rows)
        entries = latents.values > 0
        counts.update(pre_latents)
        active.update(pre_latents[latents.row_ids[entries], latents.neuron_ids[entries].long()])
    return counts, active
