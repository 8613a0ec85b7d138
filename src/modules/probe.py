"""Trains a probe on vectors of items, or on every row."""

from typing import Any

import lightning
import torch
from torch import Tensor, nn

from src.data.feeding.probe_batches import ProbeBatch
from src.models.probes import Probe
from src.modules.divergence import first_not_finite, require_finite_state
from src.ops.probe_losses import probe_loss, soft_threshold

_REMEDY = "Try a lower probe.lr, and look at the activations for values far above the others."


class ProbeModule(lightning.LightningModule):
    """Minimises the weighted cross-entropy plus `l2 / 2 |W|^2 + l1 |W|_1` with Adam; biases are not penalised.

    The L1 term is a proximal step in Adam's own metric after each step of Adam, so that weights become exactly 0 and
    the point of rest is that of the penalty (Yun, Lozano and Yang, "Adaptive proximal gradient methods for structured
    neural networks", NeurIPS 2021).

    Args:
        probe: the probe, its shift and scale set.
        class_weights: of `src.ops.probe_losses.class_weights`.
        lr: learning rate.
        l2: see above.
        l1: see above.
        name: enters the keys of what is logged (`val/<name>_loss`).
    """

    class_weights: Tensor

    def __init__(
        self, probe: Probe, class_weights: Tensor, lr: float, l2: float = 0.0, l1: float = 0.0, name: str = "probe"
    ) -> None:
        super().__init__()
        self.probe, self.lr, self.l2, self.l1, self.name = probe, lr, l2, l1, name
        self.register_buffer("class_weights", class_weights)
        self._losses: list[Tensor] = []

    @property
    def monitored(self) -> str:
        """The key of the validation loss, without the penalty."""
        return f"val/{self.name}_loss"

    @property
    def penalised(self) -> list[Tensor]:
        """The weights of the layers."""
        return [layer.weight for layer in self.probe.modules() if isinstance(layer, nn.Linear)]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Returns Adam."""
        return torch.optim.Adam(self.parameters(), lr=self.lr, fused=True)

    def training_step(self, batch: ProbeBatch, batch_idx: int) -> Tensor:  # noqa: ARG002 - Lightning's signature
        """Returns the loss of a batch with the L2 term."""
        loss = probe_loss(self.probe(batch.vectors), batch.targets, self.class_weights)
        self._losses.append(loss.detach())
        return loss + self.l2 / 2 * sum(weight.square().sum() for weight in self.penalised)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Takes Adam's step, and the proximal one of the L1 term."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if self.l1:
            state, (group,) = optimizer.optimizer.state, optimizer.optimizer.param_groups
            with torch.no_grad():
                for weight in self.penalised:
                    corrected = state[weight]["exp_avg_sq"] / (1 - group["betas"][1] ** state[weight]["step"])
                    least = self.lr * self.l1 / (corrected.sqrt() + group["eps"])
                    weight.copy_(soft_threshold(weight, least))

    def on_validation_start(self) -> None:
        """Refuses to go on where the epoch's training diverged."""
        if (position := first_not_finite(self._losses)) is not None:
            raise ValueError(
                f"Expected finite losses of the probe on {self.name}, got {float(self._losses[position])} in epoch "
                f"{self.current_epoch + 1}: training diverged. {_REMEDY}"
            )
        self._losses.clear()

    on_train_epoch_end = on_validation_start  # also without validation items

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses to save what is not finite.

        Raises:
            ValueError: when a weight or a moment of the optimizer is infinite or NaN.
        """
        require_finite_state(checkpoint, f"weights of the probe after epoch {self.current_epoch + 1}", _REMEDY)

    def validation_step(self, batch: ProbeBatch, batch_idx: int) -> None:  # noqa: ARG002 - Lightning's signature
        """Logs the mean loss over all validation vectors at the end of the epoch."""
        loss = probe_loss(self.probe(batch.vectors), batch.targets, self.class_weights)
        self.log(self.monitored, loss, on_step=False, on_epoch=True, batch_size=len(batch.vectors))
