"""Mean pooling of patch logits."""

from collections.abc import Sequence

import torch

from src.models.mil.base import Labels, Pooled, Rows, by_bag
from src.models.mil.instance import InstanceMIL


class MeanMIL(InstanceMIL):
    """Scores each patch with a small network and takes, per class, the mean over the bag, as sae-1n and MambaMIL do."""

    def pool(self, rows: Rows, lengths: Sequence[int], labels: Labels | None) -> Pooled:  # noqa: ARG002
        """Classifies bags; see `MILModel.pool`."""
        hidden = self.hidden(rows)
        means = torch.stack([bag.mean(0) for bag in by_bag(hidden, lengths)])  # the last layer is linear
        return Pooled(self.classifier(means), instance_logits=None if self.training else self.classifier(hidden))
