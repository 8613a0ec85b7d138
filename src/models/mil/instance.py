"""The network that scores every patch by itself, of max and mean pooling."""

from typing import get_args

from jaxtyping import Float
from torch import Tensor, nn

from src.models.mil.base import MILModel, Rows, first_layer
from src.ops.dropout import Activation, hidden_units


class InstanceMIL(MILModel):
    """Scores each patch with one hidden layer; a subclass pools the scores.

    Sizes of sae-1n and MambaMIL: 512 hidden units, ReLU, dropout 0.25; weights start from Xavier's normal distribution
    with gain 1 (Glorot and Bengio, AISTATS 2010, eq. 16 in its normal form), biases from 0.

    Args:
        d_in: width of a patch's vector.
        n_classes: number of classes.
        n_hidden: hidden units.
        dropout: share of hidden units dropped in training.
        activation: of the hidden layer.
    """

    def __init__(
        self, d_in: int, n_classes: int, n_hidden: int = 512, dropout: float = 0.25, activation: Activation = "relu"
    ) -> None:
        super().__init__(d_in, n_classes)
        self.patch_encoder = nn.Linear(d_in, n_hidden)
        self.classifier = nn.Linear(n_hidden, n_classes)
        self.dropout = dropout
        self.activation: Activation = checked_activation(activation)
        for layer in (self.patch_encoder, self.classifier):
            nn.init.xavier_normal_(layer.weight)
            nn.init.zeros_(layer.bias)

    def hidden(self, rows: Rows) -> Float[Tensor, "n_rows n_hidden"]:
        """Returns the hidden units of patches, with dropout in training."""
        return hidden_units(
            first_layer(self.patch_encoder, rows), self.activation, self.dropout if self.training else 0.0
        )


def checked_activation(activation: Activation) -> Activation:
    """Returns an activation's name; raises ValueError when there is no such one."""
    if activation not in get_args(Activation):
        raise ValueError(f"Expected an activation among {', '.join(get_args(Activation))}, got {activation!r}.")
    return activation
