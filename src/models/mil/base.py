"""What every multiple-instance model gives back, and how padding is kept out of it."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

Bags = Float[Tensor, "n_bags n_patches {self.d_in}"]
Mask = Bool[Tensor, "n_bags n_patches"]
"""True on patches and false on padding."""


@dataclass(frozen=True)
class MILOutput:
    """The prediction for a batch of bags.

    Attributes:
        logits: [n_bags, n_classes].
        attention: [n_bags, n_patches], not negative, sums to 1 over a bag's patches and is 0 on padding; None for
            models without attention.
        instance_logits: [n_bags, n_patches, n_classes], what each patch alone speaks for; undefined on padding.
    """

    logits: Float[Tensor, "n_bags n_classes"]
    attention: Float[Tensor, "n_bags n_patches"] | None
    instance_logits: Float[Tensor, "n_bags n_patches n_classes"]


class MILModel(nn.Module, ABC):
    """Classifies bags of patches; the order of patches and the amount of padding change nothing.

    Args:
        d_in: width of a patch's vector.
        n_classes: number of classes.
    """

    def __init__(self, d_in: int, n_classes: int) -> None:
        super().__init__()
        self.d_in = d_in
        self.n_classes = n_classes

    @abstractmethod
    def forward(self, bags: Bags, mask: Mask) -> MILOutput:
        """Classifies padded bags.

        Args:
            bags: [n_bags, n_patches, d_in].
            mask: [n_bags, n_patches] bool, true on patches and false on padding.
        """


def masked_softmax(scores: Float[Tensor, "*bags n"], mask: Bool[Tensor, "*bags n"]) -> Float[Tensor, "*bags n"]:
    """Returns the softmax over the last dimension among the entries of `mask`; all 0 where the mask is empty.

    Args:
        scores: [..., n].
        mask: [..., n] bool.
    """
    lowest = torch.finfo(scores.dtype).min  # not -inf, whose softmax over an empty bag is NaN
    return scores.masked_fill(~mask, lowest).softmax(dim=-1) * mask


def masked_max(values: Float[Tensor, "n_bags n_patches n_classes"], mask: Mask) -> Float[Tensor, "n_bags n_classes"]:
    """Returns the maximum over dimension 1 among the entries of `mask`; 0 where the mask is empty.

    Args:
        values: [n_bags, n_patches, n_classes].
        mask: [n_bags, n_patches] bool.

    Returns:
        [n_bags, n_classes].
    """
    lowest = torch.finfo(values.dtype).min
    highest = values.masked_fill(~mask.unsqueeze(-1), lowest).max(dim=1).values
    return highest.masked_fill(~mask.any(dim=1, keepdim=True), 0.0)
