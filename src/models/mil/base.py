"""What every multiple-instance model gives back, and how padding is kept out of it."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor, nn

from src.ops.sparse_latents import SparseLatents
from src.ops.sparse_products import decode_sparse

Bags = Float[Tensor, "n_bags n_patches {self.d_in}"]
Mask = Bool[Tensor, "n_bags n_patches"]
"""True on patches and false on padding."""
Labels = Int64[Tensor, " n_bags"]
Rows = Float[Tensor, "n_rows {self.d_in}"] | SparseLatents
"""The patches of all bags of a batch one after the other, without padding."""


@dataclass(frozen=True)
class MILOutput:
    """The prediction for a batch of bags. Scores of patches are 0 on padding.

    Attributes:
        logits: [n_bags, n_classes].
        attention: [n_bags, n_branches, n_patches], not negative; each branch sums to 1 over a bag's patches. One branch
            for all classes, or one a class. None for models without attention.
        instance_logits: [n_bags, n_patches, n_classes], what each patch alone speaks for; None for models that have no
            such thing, and in training where nothing needs it.
        losses: named terms of the loss [n_bags], weighted, to be summed; empty without labels.
    """

    logits: Float[Tensor, "n_bags n_classes"]
    attention: Float[Tensor, "n_bags n_branches n_patches"] | None = None
    instance_logits: Float[Tensor, "n_bags n_patches n_classes"] | None = None
    losses: Mapping[str, Float[Tensor, " n_bags"]] = field(default_factory=dict)


class Pooled(NamedTuple):
    """The prediction for bags given as rows: as `MILOutput`, with the bags' patches one after the other.

    Attributes:
        logits: [n_bags, n_classes].
        attention: [n_rows, n_branches] or None.
        instance_logits: [n_rows, n_classes] or None.
        losses: terms besides the cross-entropy of the bags.
    """

    logits: Tensor
    attention: Tensor | None = None
    instance_logits: Tensor | None = None
    losses: Mapping[str, Tensor] = {}


class MILModel(nn.Module, ABC):
    """Classifies bags of patches; a bag gives the same alone, in a batch and with any padding.

    Args:
        d_in: width of a patch's vector.
        n_classes: number of classes.
    """

    bag_weight: float = 1.0
    """Of the cross-entropy of bag labels in the loss, where there are other terms."""

    def __init__(self, d_in: int, n_classes: int) -> None:
        super().__init__()
        self.d_in = d_in
        self.n_classes = n_classes

    @abstractmethod
    def pool(self, rows: Rows, lengths: Sequence[int], labels: Labels | None) -> Pooled:
        """Classifies bags given as rows.

        Args:
            rows: [n_rows, d_in], the patches of all bags, bag after bag.
            lengths: the number of patches of each bag, 1 or more.
            labels: [n_bags] class indices, for models with losses of their own; None when losses are not asked for.
        """

    def forward(
        self,
        bags: Bags | SparseLatents,
        mask: Mask,
        labels: Labels | None = None,
        lengths: Sequence[int] | None = None,
    ) -> MILOutput:
        """Classifies padded bags; what padding holds is never looked at.

        Args:
            bags: [n_bags, n_patches, d_in]; sparse latents instead are not padded: [n_rows, d_in], one bag's patches
                after the other's.
            mask: [n_bags, n_patches] bool, true on patches and false on padding, which follows them.
            labels: [n_bags] class indices, when losses are asked for.
            lengths: the number of patches of each bag, counted from the mask when left out; given, a GPU need not be
                waited for.

        Raises:
            ValueError: when a bag has no patch.
        """
        lengths = mask.sum(1).tolist() if lengths is None else lengths
        if 0 in lengths:
            raise ValueError(
                f"Expected bags of at least one patch, got none in bag {lengths.index(0)} of {len(lengths)}: leave the "
                "item out, or look at its file."
            )
        if isinstance(bags, SparseLatents):
            rows: Rows = bags
        else:
            rows = _unpadded(bags, lengths)
        pooled = self.pool(rows, lengths, labels)
        losses = dict(pooled.losses)
        if labels is not None:
            cross_entropy = F.cross_entropy(pooled.logits, labels, reduction="none")
            losses = {"bag": self.bag_weight * cross_entropy, **losses}
        attention = None if pooled.attention is None else _padded(pooled.attention, lengths).transpose(1, 2)
        instances = None if pooled.instance_logits is None else _padded(pooled.instance_logits, lengths)
        return MILOutput(pooled.logits, attention, instances, losses)


def first_layer(
    layer: nn.Linear, rows: Float[Tensor, "n_rows d_in"] | SparseLatents
) -> Float[Tensor, "n_rows n_hidden"]:
    """Returns a linear layer of rows, dense or sparse."""
    return (
        decode_sparse(rows, layer.weight.T.contiguous()) + layer.bias
        if isinstance(rows, SparseLatents)
        else layer(rows)
    )


def dense_rows(rows: Float[Tensor, "n_rows d_in"] | SparseLatents) -> Float[Tensor, "n_rows d_in"]:
    """Returns rows as a matrix, for models that need one."""
    return rows.to_dense() if isinstance(rows, SparseLatents) else rows


def bag_softmax(
    scores: Float[Tensor, "n_rows n_branches"], lengths: Sequence[int]
) -> Float[Tensor, "n_rows n_branches"]:
    """Returns the softmax of scores over the rows of each bag, for every branch by itself."""
    return torch.cat([one.softmax(0) for one in by_bag(scores, lengths)])


def weighted_sums(
    weights: Float[Tensor, "n_rows n_branches"], rows: Float[Tensor, "n_rows d"], lengths: Sequence[int]
) -> Float[Tensor, "n_bags n_branches d"]:
    """Returns each bag's sum of its rows, weighted by every branch."""
    bags = zip(by_bag(weights, lengths), by_bag(rows, lengths), strict=True)
    return torch.stack([weight.T @ bag for weight, bag in bags])


def by_bag(rows: Float[Tensor, "n_rows d"], lengths: Sequence[int]) -> tuple[Float[Tensor, "n_bag_rows d"], ...]:
    """Returns the rows of each bag.

    One bag is not cut from anything: the backward pass of cutting would copy its gradient.
    """
    return (rows,) if len(lengths) == 1 else rows.split(list(lengths))


def bag_slices(lengths: Sequence[int]) -> Iterator[slice]:
    """Yields where the rows of each bag lie."""
    start = 0
    for length in lengths:
        yield slice(start, start + length)
        start += length


def _unpadded(bags: Shaped[Tensor, "n_bags n_patches d"], lengths: Sequence[int]) -> Shaped[Tensor, "n_rows d"]:
    if min(lengths) == bags.shape[1]:
        return bags.flatten(0, 1)
    return torch.cat([bag[:length] for bag, length in zip(bags, lengths, strict=True)])


def _padded(values: Shaped[Tensor, "n_rows d"], lengths: Sequence[int]) -> Shaped[Tensor, "n_bags n_patches d"]:
    if min(lengths) == max(lengths):
        return values.unflatten(0, (len(lengths), -1))
    return nn.utils.rnn.pad_sequence(list(values.split(list(lengths))), batch_first=True)
