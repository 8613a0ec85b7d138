"""Max pooling of patch logits."""

from torch import nn

from src.models.mil.base import Bags, Mask, MILModel, MILOutput, masked_max


class MaxMIL(MILModel):
    """Scores each patch with a small network and takes, per class, the highest score in the bag.

    The multiple-instance assumption as a network: a slide is as positive as its most positive patch (Campanella et
    al., "Clinical-grade computational pathology using weakly supervised deep learning on whole slide images", Nature
    Medicine 2019, train on the top patch; here the maximum is taken for each class by itself, as sae-1n and MambaMIL
    do). Their sizes: 512 hidden units, ReLU, dropout 0.25; weights start from Xavier's normal distribution with gain
    1 (Glorot and Bengio, AISTATS 2010, eq. 16 in its normal form), biases from 0.

    Args:
        d_in: width of a patch's vector.
        n_classes: number of classes.
        n_hidden: hidden units.
        dropout: share of hidden units dropped in training.
    """

    def __init__(self, d_in: int, n_classes: int, n_hidden: int = 512, dropout: float = 0.25) -> None:
        super().__init__(d_in, n_classes)
        self.patch_encoder = nn.Linear(d_in, n_hidden)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(n_hidden, n_classes)
        for layer in (self.patch_encoder, self.classifier):
            nn.init.xavier_normal_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, bags: Bags, mask: Mask) -> MILOutput:
        """Classifies padded bags; see `MILModel.forward`."""
        hidden = self.dropout(self.patch_encoder(bags).relu())  # [n_bags, n_patches, n_hidden]
        instance_logits = self.classifier(hidden)
        return MILOutput(masked_max(instance_logits, mask), None, instance_logits)
