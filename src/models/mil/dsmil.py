"""Attention to the patches that are like the most suspicious one."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.models.mil.base import Labels, MILModel, Pooled, Rows, bag_slices, dense_rows


class DSMIL(MILModel):
    """Classifies patches, and weighs them by their likeness to the highest-scored patch of each class.

    Li, Li and Eliceiri, "Dual-stream multiple instance learning network for whole slide image classification with
    self-supervised contrastive learning", CVPR 2021, as `dsmil.py` has it: queries of 128 units, values are the patches
    themselves, orthogonal start, biases from 0. The loss is the mean of the cross-entropies of the bag's logits and of
    the highest patch logits. Of two classes only the positive one has an output, whose sigmoid is the softmax over it
    and 0, as the authors train on CAMELYON16. Deviation: with more classes cross-entropy instead of a sigmoid a class.

    Args:
        d_in: width of a patch's vector.
        n_classes: number of classes.
        n_query: width of the queries that are compared.
    """

    bag_weight = 0.5

    def __init__(self, d_in: int, n_classes: int, n_query: int = 128) -> None:
        super().__init__(d_in, n_classes)
        n_outputs = 1 if n_classes == 2 else n_classes
        self.instance_classifier = nn.Linear(d_in, n_outputs)
        first, second = nn.Linear(d_in, n_query), nn.Linear(n_query, n_query)
        self.query = nn.Sequential(first, nn.ReLU(), second, nn.Tanh())
        self.classifier = nn.Linear(n_outputs * d_in, n_outputs)  # theirs: a convolution as wide as its input
        for layer in (self.instance_classifier, first, second, self.classifier):
            nn.init.orthogonal_(layer.weight)
            nn.init.zeros_(layer.bias)

    def pool(self, rows: Rows, lengths: Sequence[int], labels: Labels | None) -> Pooled:
        """Classifies bags; see `MILModel.pool`."""
        rows = dense_rows(rows)
        instances, queries = self.instance_classifier(rows), self.query(rows)
        attention, bags, highest = [], [], []
        for bag in bag_slices(lengths):
            top = instances[bag].max(0)  # over patches, for each class
            likeness = queries[bag] @ queries[bag][top.indices].T / queries.shape[1] ** 0.5
            attention.append(likeness.softmax(0))  # [n_patches, n_outputs]
            bags.append((attention[-1].T @ rows[bag]).flatten())
            highest.append(top.values)
        losses = {}
        if labels is not None:
            of_top = F.cross_entropy(self._with_zero(torch.stack(highest)), labels, reduction="none")
            losses = {"instance": (1 - self.bag_weight) * of_top}
        logits = self._with_zero(self.classifier(torch.stack(bags)))
        return Pooled(logits, torch.cat(attention), self._with_zero(instances), losses)

    def _with_zero(self, outputs: Tensor) -> Tensor:
        """Returns logits of all classes; of two the first is 0."""
        return outputs if self.n_classes > 2 else F.pad(outputs, (1, 0))
