"""Trains a multiple-instance model on bags of patches."""

from typing import Any, NamedTuple

import lightning
import torch
import torch.nn.functional as F
from torch import Tensor

from src.data.feeding.bags import BagBatch
from src.models.mil.base import MILModel
from src.modules.divergence import MIL_REMEDY, first_not_finite, require_finite_state


class BagPrediction(NamedTuple):
    """One slide's class probabilities [n_classes] and, of models that have it, attention per patch [n_patches]."""

    item_id: str
    probabilities: Tensor
    attention: Tensor | None


class MILModule(lightning.LightningModule):
    """Minimises the cross-entropy of bag labels with Adam; weight decay is Adam's L2 term, as in CLAM and sae-1n.

    Nothing is logged by step: a bag's step is shorter than its logging. Once an epoch losses are looked at: one that is
    not finite is an error, as are weights that are not when they are to be saved.

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
        self._train_losses: list[Tensor] = []
        self._val_losses: list[Tensor] = []

    @property
    def monitored(self) -> str:
        """The key of the validation loss, the mean over validation slides."""
        return f"val/{self.name}_loss"

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Returns Adam; its fused kernel is several times faster than the others on CPU and CUDA."""
        return torch.optim.Adam(self.model.parameters(), lr=self.lr, weight_decay=self.weight_decay, fused=True)

    def training_step(self, batch: BagBatch, batch_idx: int) -> Tensor:  # noqa: ARG002 - Lightning's signature
        """Returns the mean cross-entropy of a batch of bags."""
        loss = self._loss(batch)
        self._train_losses.append(loss.detach())
        return loss

    def on_validation_start(self) -> None:
        """Refuses to go on where the epoch's training diverged, before what it left is chosen by validation."""
        position = first_not_finite(self._train_losses)
        if position is not None:
            step = self.global_step - len(self._train_losses) + position + 1
            raise ValueError(
                f"Expected finite losses of {self.name}, got {float(self._train_losses[position])} in epoch "
                f"{self.current_epoch + 1} at step {step}: training diverged. {MIL_REMEDY}"
            )
        self._train_losses.clear()

    on_train_epoch_end = on_validation_start  # also without validation slides

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses to save what is not finite.

        Raises:
            ValueError: when a weight or a moment of the optimizer is infinite or NaN.
        """
        where = f"weights of {self.name} after epoch {self.current_epoch + 1}, step {self.global_step}"
        require_finite_state(checkpoint, where, MIL_REMEDY)

    def validation_step(self, batch: BagBatch, batch_idx: int) -> None:  # noqa: ARG002 - Lightning's signature
        """Logs the mean cross-entropy over all validation bags at the end of the epoch."""
        loss = self._loss(batch)
        self._val_losses.append(loss)
        self.log(self.monitored, loss, on_step=False, on_epoch=True, batch_size=len(batch.labels))

    def on_validation_epoch_end(self) -> None:
        """Refuses a validation loss that is not finite: EarlyStopping would end training without a word."""
        if first_not_finite(self._val_losses) is not None:
            raise ValueError(
                f"Expected finite validation losses of {self.name}, got others after epoch {self.current_epoch + 1}, "
                f"step {self.global_step}: training diverged. {MIL_REMEDY}"
            )
        self._val_losses.clear()

    def predict_step(self, batch: BagBatch, batch_idx: int) -> list[BagPrediction]:  # noqa: ARG002
        """Returns the predictions for a batch of bags, on the CPU and without padding."""
        output = self.model(batch.bags, batch.mask)
        probabilities = output.logits.softmax(dim=-1).cpu()
        attention: list[Tensor | None] = [None] * len(batch.item_ids)
        if output.attention is not None:
            attention = [row[mask].cpu() for row, mask in zip(output.attention, batch.mask, strict=True)]
        return [BagPrediction(*one) for one in zip(batch.item_ids, probabilities, attention, strict=True)]

    def _loss(self, batch: BagBatch) -> Tensor:
        return F.cross_entropy(self.model(batch.bags, batch.mask).logits, batch.labels)
