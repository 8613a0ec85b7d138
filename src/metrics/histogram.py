"""A histogram that is filled batch by batch."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchmetrics import Metric

# torch counts in float32, which is exact up to 2^24.
_PIECE = 1 << 24


class Histogram(Metric):
    """The number of values in each of `n_bins` equal bins from `low` to `high`.

    What lies beyond is in the end bins, NaNs are in none.

    Args:
        low: start of the first bin.
        high: end of the last bin.
        n_bins: number of bins.
    """

    full_state_update = False
    counts: Int[Tensor, " n_bins"]

    def __init__(self, low: float, high: float, n_bins: int) -> None:
        super().__init__()
        self.low, self.high, self.n_bins = low, high, n_bins
        self.add_state("counts", torch.zeros(n_bins, dtype=torch.int64), dist_reduce_fx="sum")

    @property
    def edges(self) -> Float[Tensor, " {self.n_bins+1}"]:
        """The bins' ends, [n_bins + 1] float64."""
        return torch.linspace(self.low, self.high, self.n_bins + 1, dtype=torch.float64)

    def update(self, values: Float[Tensor, "..."]) -> None:
        """Adds values of any shape."""
        for piece in values.float().reshape(-1).split(_PIECE):
            inside = piece.clamp(self.low, self.high)
            self.counts += torch.histc(inside, self.n_bins, self.low, self.high).long()

    def compute(self) -> Int[Tensor, " {self.n_bins}"]:
        """Returns the counts [n_bins]."""
        return self.counts
