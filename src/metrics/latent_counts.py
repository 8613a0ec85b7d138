"""What is counted over the latents of a whole set: L0 and neurons that never fire."""

import torch
from torch import Tensor
from torchmetrics import Metric

from src.ops.sparse_latents import SparseLatents


class L0(Metric):
    """The mean number of latents above zero per row."""

    full_state_update = False
    n_rows: Tensor
    n_active: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("n_rows", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("n_active", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, latents: SparseLatents) -> None:
        """Adds rows of latents."""
        self.n_rows += latents.n_rows
        self.n_active += (latents.values > 0).sum()

    def compute(self) -> Tensor:
        """Returns the mean, NaN without rows."""
        return self.n_active.double() / self.n_rows


class DeadFraction(Metric):
    """The share of neurons that are silent on every row of the set.

    The window is the set itself: on a small set this counts rare neurons too.

    Args:
        n_latents: number of neurons.
    """

    full_state_update = False
    higher_is_better = False
    n_fired: Tensor

    def __init__(self, n_latents: int) -> None:
        super().__init__()
        self.add_state("n_fired", torch.zeros(n_latents, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, latents: SparseLatents) -> None:
        """Adds rows of latents [n_rows, n_latents]."""
        active = latents.neuron_ids[latents.values > 0]
        self.n_fired += torch.bincount(active, minlength=self.n_fired.numel())

    def compute(self) -> Tensor:
        """Returns the share."""
        return (self.n_fired == 0).double().mean()
