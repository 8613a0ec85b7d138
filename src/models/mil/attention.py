"""Attention pooling of patches."""

from collections.abc import Sequence

from torch import nn

from src.models.mil.base import Labels, MILModel, Pooled, Rows, bag_softmax, first_layer, weighted_sums
from src.models.mil.instance import checked_activation
from src.ops.dropout import Activation, hidden_units


class AttentionMIL(MILModel):
    """Averages encoded patches with learned attention and classifies the average (ABMIL).

    Ilse, Tomczak and Welling, "Attention-based deep multiple instance learning", ICML 2018: eq. 8 (attention) and
    eq. 9 (gated attention). The sizes are those of sae-1n and MambaMIL: 512 hidden units, 128 attention units,
    PyTorch's default start. Deviations from the paper: one logit per class and cross-entropy instead of one sigmoid,
    attention layers with biases, dropout 0.25 on the encoded patches.

    Args:
        d_in: width of a patch's vector.
        n_classes: number of classes.
        n_hidden: width of an encoded patch.
        n_attention: width of the attention network.
        dropout: share of hidden units dropped in training.
        gated: eq. 9 instead of eq. 8.
        activation: of the hidden layer.
    """

    def __init__(
        self,
        d_in: int,
        n_classes: int,
        n_hidden: int = 512,
        n_attention: int = 128,
        dropout: float = 0.25,
        gated: bool = False,
        activation: Activation = "relu",
    ) -> None:
        super().__init__(d_in, n_classes)
        self.patch_encoder = nn.Linear(d_in, n_hidden)
        self.attention_value = nn.Linear(n_hidden, n_attention)
        self.attention_gate = nn.Linear(n_hidden, n_attention) if gated else None
        self.attention_score = nn.Linear(n_attention, 1)
        self.classifier = nn.Linear(n_hidden, n_classes)
        self.dropout = dropout
        self.activation: Activation = checked_activation(activation)

    def pool(self, rows: Rows, lengths: Sequence[int], labels: Labels | None) -> Pooled:  # noqa: ARG002
        """Classifies bags; see `MILModel.pool`.

        `instance_logits` is the classifier applied to each patch by itself; the mean weighted by attention is `logits`.
        """
        hidden = hidden_units(
            first_layer(self.patch_encoder, rows), self.activation, self.dropout if self.training else 0.0
        )
        scores = self.attention_value(hidden).tanh()  # [n_rows, n_attention]
        if self.attention_gate is not None:
            scores = scores * self.attention_gate(hidden).sigmoid()
        attention = bag_softmax(self.attention_score(scores), lengths)  # [n_rows, 1]
        pooled = weighted_sums(attention, hidden, lengths).squeeze(1)  # [n_bags, n_hidden]
        instance_logits = None if self.training else self.classifier(hidden)
        return Pooled(self.classifier(pooled), attention, instance_logits)
