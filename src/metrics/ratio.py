"""The base of metrics that are one sum over the whole set divided by another."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor
from torchmetrics import Metric

from src.ops.shapes import Scalar


class RatioOfSums(Metric, ABC):
    """A numerator and a denominator, each summed over all rows in float64 and divided once, at the end.

    So neither the size nor the order of the batches changes the number, nor how rows are spread over processes, which
    a mean of per-batch ratios does not hold to.
    """

    full_state_update = False
    numerator: Scalar
    denominator: Scalar

    def __init__(self) -> None:
        super().__init__()
        self.add_state("numerator", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("denominator", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    @abstractmethod
    def terms(self, *batch: Any) -> tuple[Shaped[Tensor, ""] | int, Shaped[Tensor, ""] | int]:
        """Returns what a batch adds to the numerator and to the denominator."""

    def update(self, *batch: Any) -> None:
        """Adds a batch of rows."""
        numerator, denominator = self.terms(*batch)
        self.numerator += numerator
        self.denominator += denominator

    def compute(self) -> Scalar:
        """Returns the ratio, float64; NaN where it is undefined: without rows, or when the denominator is 0."""
        return self.numerator / self.denominator if self.denominator else torch.full_like(self.numerator, torch.nan)
