"""Max pooling of patch logits."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from src.models.mil.base import Labels, Pooled, Rows, bag_slices, first_layer
from src.models.mil.instance import InstanceMIL
from src.ops.dropout import hidden_units, kept_units
from src.ops.sparse_latents import SparseLatents

# Patches scored at once in training: their hidden units stay in cache.
_PIECE_ROWS = 1024


class MaxMIL(InstanceMIL):
    """Scores each patch with a small network and takes, per class, the highest score in the bag.

    The multiple-instance assumption as a network: a slide is as positive as its most positive patch (Campanella et
    al., "Clinical-grade computational pathology using weakly supervised deep learning on whole slide images", Nature
    Medicine 2019, train on the top patch; here the maximum is taken for each class by itself, as sae-1n and MambaMIL
    do).

    A maximum passes its gradient to one patch. Training therefore scores all patches without a graph, and computes
    those that won again with one, under the same dropout: the gradients are those of the full computation.
    """

    def pool(self, rows: Rows, lengths: Sequence[int], labels: Labels | None) -> Pooled:  # noqa: ARG002
        """Classifies bags; see `MILModel.pool`."""
        if self.training and torch.is_grad_enabled():
            return Pooled(self._logits_of_winners(rows, lengths))
        instance_logits = self.classifier(self.hidden(rows))
        logits = torch.stack([instance_logits[bag].max(0).values for bag in bag_slices(lengths)])
        return Pooled(logits, instance_logits=instance_logits)

    def _logits_of_winners(self, rows: Tensor | SparseLatents, lengths: Sequence[int]) -> Tensor:
        share = 1 - self.dropout
        weight, bias = self.classifier.weight, self.classifier.bias
        with torch.no_grad():
            n_rows = sum(lengths)
            kept = kept_units((n_rows, weight.shape[1]), self.dropout, weight.device) if self.dropout else None
            scores = []
            for bag in bag_slices([min(_PIECE_ROWS, n_rows - at) for at in range(0, n_rows, _PIECE_ROWS)]):
                piece = rows.rows(bag.start, bag.stop) if isinstance(rows, SparseLatents) else rows[bag]
                hidden = hidden_units(first_layer(self.patch_encoder, piece), self.activation, 0.0)
                if kept is not None:
                    hidden = torch.where(kept[bag], hidden, 0.0)
                scores.append(F.linear(hidden, weight / share, bias))
            all_scores = torch.cat(scores)
            winners = torch.stack([bag.start + all_scores[bag].argmax(0) for bag in bag_slices(lengths)])
        # One patch a bag and class: [n_bags * n_classes, n_hidden], scored by its class alone.
        chosen = winners.flatten()
        if isinstance(rows, SparseLatents):
            patches = SparseLatents.cat([rows.rows(row, row + 1) for row in chosen.tolist()])
        else:
            patches = rows[chosen]
        hidden = hidden_units(first_layer(self.patch_encoder, patches), self.activation, 0.0)
        if kept is not None:
            hidden = hidden * kept[chosen] / share
        logits = torch.einsum("bch,ch->bc", hidden.view(*winners.shape, -1), weight)
        return logits + bias
