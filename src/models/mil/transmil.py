"""A transformer over the patches of a bag."""

from collections.abc import Sequence
from math import ceil, sqrt
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.models.mil.base import Labels, MILModel, Pooled, Rows, by_bag, first_layer
from src.models.mil.instance import checked_activation
from src.models.mil.nystrom import NystromLayer
from src.ops.dropout import Activation, hidden_units


class _Read(NamedTuple):
    """One bag's logits [n_classes] and, in evaluation, its attention [n_patches]."""

    logits: Tensor
    attention: Tensor | None


class TransMIL(MILModel):
    """Two layers of approximate self-attention with a convolution over positions between them.

    Shao et al., "TransMIL: transformer based correlated multiple instance learning for whole slide image
    classification", NeurIPS 2021, with the sizes and start of sae-1n: width 512, dropout 0.25 on the encoded patches,
    Xavier's normal distribution for linear layers, a class token of standard deviation 1e-6. Bags are laid out on a
    square in the order of their patches, filled up with their first ones: the order matters, unlike in other models.
    Every bag is computed by itself, since the pseudo-inverse starts from a maximum over all that is computed together:
    a bag gives the same alone and in a batch.

    Attention is that of the class token in the second layer: the mean over heads of the approximate attention matrix's
    row, cut off at 0 (the approximation may be negative) and scaled to sum to 1.

    Args:
        d_in: width of a patch's vector.
        n_classes: number of classes.
        n_hidden: width of tokens; a multiple of `n_heads`. There are `n_hidden / 2` landmarks.
        n_heads: attention heads.
        dropout: share of units of the encoded patches dropped in training.
        attention_dropout: share of units dropped behind each attention.
        activation: of the encoded patches.
    """

    def __init__(
        self,
        d_in: int,
        n_classes: int,
        n_hidden: int = 512,
        n_heads: int = 8,
        dropout: float = 0.25,
        attention_dropout: float = 0.1,
        activation: Activation = "relu",
    ) -> None:
        super().__init__(d_in, n_classes)
        if n_hidden % n_heads:
            raise ValueError(f"Expected n_hidden to be a multiple of n_heads={n_heads}, got {n_hidden}.")
        self.dropout = dropout
        self.activation: Activation = checked_activation(activation)
        self.patch_encoder = nn.Linear(d_in, n_hidden)
        self.class_token = nn.Parameter(torch.empty(n_hidden))
        self.layers = nn.ModuleList(NystromLayer(n_hidden, n_heads, attention_dropout) for _ in range(2))
        self.positions = nn.ModuleList(
            nn.Conv2d(n_hidden, n_hidden, size, padding=size // 2, groups=n_hidden) for size in (7, 5, 3)
        )
        self.norm = nn.LayerNorm(n_hidden)
        self.classifier = nn.Linear(n_hidden, n_classes)
        nn.init.normal_(self.class_token, std=1e-6)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def pool(self, rows: Rows, lengths: Sequence[int], labels: Labels | None) -> Pooled:  # noqa: ARG002
        """Classifies bags; see `MILModel.pool`. There are no logits of single patches."""
        hidden = hidden_units(
            first_layer(self.patch_encoder, rows), self.activation, self.dropout if self.training else 0.0
        )
        read = [self._read(bag) for bag in by_bag(hidden, lengths)]
        attention = [one.attention for one in read if one.attention is not None]
        return Pooled(torch.stack([one.logits for one in read]), torch.cat(attention)[:, None] if attention else None)

    def _read(self, patches: Tensor) -> _Read:
        """Classifies one bag of encoded patches [n_patches, n_hidden]."""
        side = ceil(sqrt(len(patches)))
        tokens = torch.cat([self.class_token[None], patches, patches[: side * side - len(patches)]])
        tokens, _ = self.layers[0](tokens)
        grid = tokens[1:].T.reshape(1, -1, side, side)
        grid = grid + sum(convolution(grid) for convolution in self.positions)
        tokens, attention = self.layers[1](torch.cat([tokens[:1], grid.flatten(2)[0].T]))
        logits = self.classifier(self.norm(tokens[0]))
        return _Read(logits, None if attention is None else _of_patches(attention[1:], len(patches)))


def _of_patches(attention: Tensor, n_patches: int) -> Tensor:
    """Returns the attention [n_patches] of tokens that begin with all patches and go on with the first ones again."""
    repeated = attention[n_patches:]
    attention = attention[:n_patches] + F.pad(repeated, (0, n_patches - len(repeated)))
    attention = attention.clamp(min=0)
    total = attention.sum()
    return attention / total if total > 0 else torch.full_like(attention, 1 / n_patches)
