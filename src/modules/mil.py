"""Trains a multiple-instance model on bags of patches."""

from typing import NamedTuple

import lightning
import torch
import torch.nn.functional as F
from torch import Tensor

from src.data.bags import BagBatch
from src.models.mil.base import MILModel


class BagPrediction(NamedTuple):
    """One slide's class probabilities [n_classes] and, of models that have it, attention per patch [n_patches]."""

    slide_id: str
    probabilities: Tensor
    attention: Tensor | None


class MILModule(lightning.LightningModule):
    """Minimises the cross-entropy of bag labels with Adam; weight decay is Adam's L2 term, as in CLAM and sae-1n.

    Nothing is logged by step: a bag's step is shorter than its logging.

    Args:
        model: the model.
        lr: learning rate.
        weight_decay: L2 coefficient.
        name: enters the keys of what is logged (`val/<name>_loss`), because several models share a run's metrics.
    """

    def __init__(self, model: MILModel, lr: float = 1e-4, weight_decay: float = 1e-5, name: str = "mil") -> None:
        super().__init__()
        self.model = model
        self.lr = lr
        self.weight_decay = weight_decay
        self.name = name

    @property
    def monitored(self) -> str:
        """The key of the validation loss, the mean over validation slides."""
        return f"val/{self.name}_loss"

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Returns Adam; its fused kernel is several times faster than the others on CPU and CUDA."""
        return torch.optim.Adam(self.model.parameters(), lr=self.lr, weight_decay=self.weight_decay, fused=True)

    def training_step(self, batch: BagBatch, batch_idx: int) -> Tensor:  # noqa: ARG002 - Lightning's signature
        """Returns the mean cross-entropy of a batch of bags."""
        return self._loss(batch)

    def validation_step(self, batch: BagBatch, batch_idx: int) -> None:  # noqa: ARG002 - Lightning's signature
        """Logs the mean cross-entropy over all validation bags at the end of the epoch."""
        self.log(self.monitored, self._loss(batch), on_step=False, on_epoch=True, batch_size=len(batch.labels))

    def predict_step(self, batch: BagBatch, batch_idx: int) -> list[BagPrediction]:  # noqa: ARG002
        """Returns the predictions for a batch of bags, on the CPU and without padding."""
        output = self.model(batch.bags, batch.mask)
        probabilities = output.logits.softmax(dim=-1).cpu()
        attention: list[Tensor | None] = [None] * len(batch.slide_ids)
        if output.attention is not None:
            attention = [row[mask].cpu() for row, mask in zip(output.attention, batch.mask, strict=True)]
        return [BagPrediction(*one) for one in zip(batch.slide_ids, probabilities, attention, strict=True)]

    def _loss(self, batch: BagBatch) -> Tensor:
        return F.cross_entropy(self.model(batch.bags, batch.mask).logits, batch.labels)
