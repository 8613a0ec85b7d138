"""How often and how strongly each neuron fires over a whole set, and how many fire too rarely or too often."""

import torch
from jaxtyping import Int, Shaped
from torch import Tensor
from torchmetrics import Metric

from src.ops.shapes import PerNeuron
from src.ops.sparse_latents import SparseLatents


class FiringCounts(Metric):
    """Counts, sums and maxima of each neuron's latents above zero.

    A neuron's density is the share of rows it fires on; the field's histogram is of its log10 (Bricken et al. 2023).
    "Dead" means little without the rows it was measured on, so their number stands beside the shares. The field's
    windows differ: rows (dictionary_learning and sparsify 10 million), batches (BatchTopK 5), forward passes (SAELens
    1000), epochs (DN-CBM), or a density (MammoSAE, PatchSAE 1e-6). Here the window is the set.

    Args:
        n_latents: number of neurons.
        almost_dead_below: a neuron with a lower density is almost dead (SAELens logs the share below 1e-5). Dead ones
            are among them, and on fewer than 1 / almost_dead_below rows no others can be.
        dense_above: a neuron with a higher density is dense (Sun et al. 2025, arXiv 2506.15679: 0.1).

    Attributes:
        n_rows: number of rows.
        n_fired: [n_latents], rows on which each neuron fired.
        sums: [n_latents] float64, sums of the latents.
        maxima: [n_latents], largest latents, 0 where silent.

    Raises:
        ValueError: when the two densities do not order.
    """

    full_state_update = False
    n_rows: Int[Tensor, ""]
    n_fired: Int[Tensor, " n_latents"]
    sums: PerNeuron
    maxima: PerNeuron

    def __init__(self, n_latents: int, almost_dead_below: float = 1e-5, dense_above: float = 0.1) -> None:
        super().__init__()
        if not 0 < almost_dead_below < dense_above <= 1:
            raise ValueError(
                "Expected densities 0 < evaluation.almost_dead_below < evaluation.dense_above <= 1, got "
                f"{almost_dead_below} and {dense_above}."
            )
        self.almost_dead_below, self.dense_above = almost_dead_below, dense_above
        self.add_state("n_rows", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("n_fired", torch.zeros(n_latents, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("sums", torch.zeros(n_latents, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("maxima", torch.zeros(n_latents), dist_reduce_fx="max")

    def update(self, latents: SparseLatents) -> None:
        """Adds rows of latents [n_rows, n_latents]."""
        active = latents.values > 0
        neuron_ids = latents.neuron_ids[active]
        self.n_rows += latents.n_rows
        self.n_fired += torch.bincount(neuron_ids, minlength=self.n_fired.numel())
        # Not a weighted bincount, which CUDA refuses with trainer.deterministic=true.
        self.sums += torch.zeros_like(self.sums).index_add_(0, neuron_ids, latents.values[active].double())
        self.maxima = torch.maximum(self.maxima, latents.max_over_rows())

    @property
    def density(self) -> PerNeuron:
        """The share of rows each neuron fires on, [n_latents] float64; NaN without rows."""
        return self.n_fired.double() / self.n_rows

    @property
    def mean_when_active(self) -> PerNeuron:
        """The mean of each neuron's latents above zero, [n_latents] float64; NaN for silent neurons."""
        return self.sums / self.n_fired

    def compute(self) -> dict[str, Shaped[Tensor, ""]]:
        """Returns `dead_fraction`, `almost_dead_fraction`, `dense_fraction`, and `n_tokens`, the rows they are of.

        Without rows the shares are NaN.
        """
        density = self.density
        chosen = {
            "dead_fraction": density == 0,
            "almost_dead_fraction": density < self.almost_dead_below,
            "dense_fraction": density > self.dense_above,
        }
        # NaN where a density is: no neuron is dead for want of rows.
        shares = {name: torch.where(density.isnan(), density, neurons.double()) for name, neurons in chosen.items()}
        return {name: share.mean() for name, share in shares.items()} | {"n_tokens": self.n_rows}
