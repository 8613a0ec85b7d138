"""Trains a multiple-instance model on bags of patches."""

from typing import Any, Literal, NamedTuple

import lightning
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from src.analysis.slide_metrics import auroc
from src.data.feeding.bags import BagBatch
from src.models.mil.base import MILModel
from src.modules.divergence import MIL_REMEDY, first_not_finite, require_finite_state


class BagPrediction(NamedTuple):
    """One slide's class probabilities [n_classes] and, of models that have them, scores of its patches.

    Attention is [n_patches, n_branches], instance logits are [n_patches, n_classes]; see `MILOutput`.
    """

    item_id: str
    probabilities: Tensor
    attention: Tensor | None
    instance_logits: Tensor | None


class MILModule(lightning.LightningModule):
    """Minimises the named losses of a model with Adam; weight decay is Adam's L2 term, as in CLAM and sae-1n.

    Nothing is logged by step: a bag's step is shorter than its logging. Once an epoch losses are looked at: one that is
    not finite is an error, as are weights that are not when they are to be saved.

    Args:
        model: the model.
        lr: learning rate.
        weight_decay: L2 coefficient.
        name: enters the keys of what is logged (`val/<name>_loss`), because several models share a run's metrics.
        betas: of Adam.
        cosine_to: the learning rate that a cosine falls to over `max_epochs`, epoch by epoch; None: it stays `lr`.
        class_weights: [n_classes], of bags of each class in the loss, in validation too; None: all 1.
        monitor: what validation chooses weights by: the bags' mean cross-entropy, or their AUROC.
    """

    class_weights: Tensor

    def __init__(
        self,
        model: MILModel,
        lr: float = 1e-4,
        weight_decay: float = 1e-5,
        name: str = "mil",
        betas: tuple[float, float] = (0.9, 0.999),
        cosine_to: float | None = None,
        class_weights: Tensor | None = None,
        monitor: Literal["loss", "auroc"] = "loss",
    ) -> None:
        super().__init__()
        self.model = model
        self.lr, self.weight_decay, self.betas, self.cosine_to = lr, weight_decay, betas, cosine_to
        self.name, self.monitor = name, monitor
        weights = torch.ones(model.n_classes) if class_weights is None else class_weights
        self.register_buffer("class_weights", weights, persistent=False)
        self._train_losses: list[Tensor] = []
        self._val_losses: list[Tensor] = []
        self._val_probabilities: list[tuple[Tensor, Tensor]] = []

    @property
    def monitored(self) -> str:
        """The key of the validation metric that weights are chosen by."""
        return f"val/{self.name}_{self.monitor}"

    @property
    def monitor_mode(self) -> Literal["min", "max"]:
        """Whether lower or higher is better."""
        return "min" if self.monitor == "loss" else "max"

    def configure_optimizers(self) -> Any:
        """Returns Adam, with its fused kernel, which is several times faster than the others, and its schedule."""
        parameters = self.model.parameters()
        adam = torch.optim.Adam(parameters, self.lr, self.betas, weight_decay=self.weight_decay, fused=True)
        if self.cosine_to is None:
            return adam
        n_epochs = self.trainer.max_epochs or 1
        return [adam], [torch.optim.lr_scheduler.CosineAnnealingLR(adam, n_epochs, self.cosine_to)]

    def training_step(self, batch: BagBatch, batch_idx: int) -> Tensor:  # noqa: ARG002 - Lightning's signature
        """Returns the mean loss of a batch of bags."""
        losses = self.model(batch.bags, batch.mask, batch.labels, batch.lengths).losses.values()
        loss = (torch.stack(list(losses)).sum(0) * self.class_weights[batch.labels]).mean()
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

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Lets dropout go on as if training had not stopped."""
        torch.set_rng_state(checkpoint["rng_state"].cpu())
        if "cuda_rng_state" in checkpoint and torch.cuda.is_available():
            torch.cuda.set_rng_state(checkpoint["cuda_rng_state"].cpu())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the state of the random numbers, and refuses to save what is not finite.

        Raises:
            ValueError: when a weight or a moment of the optimizer is infinite or NaN.
        """
        where = f"weights of {self.name} after epoch {self.current_epoch + 1}, step {self.global_step}"
        require_finite_state(checkpoint, where, MIL_REMEDY)
        checkpoint["rng_state"] = torch.get_rng_state()
        if torch.cuda.is_available():
            checkpoint["cuda_rng_state"] = torch.cuda.get_rng_state()

    def validation_step(self, batch: BagBatch, batch_idx: int) -> None:  # noqa: ARG002 - Lightning's signature
        """Logs the mean cross-entropy over all validation bags at the end of the epoch."""
        logits = self.model(batch.bags, batch.mask, lengths=batch.lengths).logits
        losses = F.cross_entropy(logits, batch.labels, reduction="none") * self.class_weights[batch.labels]
        self._val_losses.append(losses.mean())
        self._val_probabilities.append((logits.softmax(-1), batch.labels))
        key = f"val/{self.name}_loss"
        self.log(key, losses.mean(), on_step=False, on_epoch=True, batch_size=len(batch.labels))

    def on_validation_epoch_end(self) -> None:
        """Logs AUROC where validation bags define it, and refuses a validation loss that is not finite."""
        if first_not_finite(self._val_losses) is not None:
            raise ValueError(
                f"Expected finite validation losses of {self.name}, got others after epoch {self.current_epoch + 1}, "
                f"step {self.global_step}: training diverged. {MIL_REMEDY}"
            )
        self._val_losses.clear()
        probabilities, labels = (torch.cat(one).cpu().numpy() for one in zip(*self._val_probabilities, strict=True))
        self._val_probabilities.clear()
        (area,) = auroc(probabilities.astype(np.float64), labels, np.ones((1, len(labels))))
        if np.isfinite(area):
            self.log(f"val/{self.name}_auroc", float(area))

    def predict_step(self, batch: BagBatch, batch_idx: int) -> list[BagPrediction]:  # noqa: ARG002
        """Returns the predictions for a batch of bags, on the CPU and without padding."""
        output = self.model(batch.bags, batch.mask, lengths=batch.lengths)
        probabilities = output.logits.softmax(dim=-1).cpu()
        attention: Any = [None] * len(batch.item_ids)
        instances: Any = [None] * len(batch.item_ids)
        if output.attention is not None:
            attention = [one.T[:n].cpu() for one, n in zip(output.attention, batch.lengths, strict=True)]
        if output.instance_logits is not None:
            instances = [one[:n].cpu() for one, n in zip(output.instance_logits, batch.lengths, strict=True)]
        return [BagPrediction(*one) for one in zip(batch.item_ids, probabilities, attention, instances, strict=True)]
