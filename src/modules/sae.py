"""Trains a sparse autoencoder: one training step of Lightning is a block of optimizer steps."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import lightning
import torch
from torch import Tensor

from src.metrics.firing import FiringCounts
from src.metrics.latent_counts import L0
from src.metrics.variance_unexplained import FractionOfVarianceUnexplained
from src.models.saes.base import SAE
from src.models.saes.step import SAEStep, TrainingProgress
from src.modules.divergence import SAE_REMEDY, describe_extreme, first_not_finite, require_finite_state
from src.ops.processes import all_sum_gradients_, gather_rows
from src.ops.schedules import learning_rate_factor


class SAEModule(lightning.LightningModule):
    """Optimizes an SAE by hand, batch by batch, over the blocks that the data module yields.

    A small SAE's step is shorter than Lightning's own loop around it; a block of many batches makes the loop's share
    small. How batches are cut into blocks does not change the weights. Every optimizer step counts in `global_step`.

    In several processes (`src.training.ddp`) each holds some rows of every batch, and a step is that of
    the whole batch: gradients are summed before they are constrained and clipped.

    All state that training moves is in parameters, buffers, the optimizer and `global_step`, so a run resumed from a
    checkpoint at the end of a block ends with the weights of an uninterrupted one.

    Training that leaves the finite numbers is an error: losses are looked at once a block, the whole state before it is
    saved and after it is loaded, so that the last checkpoint is one to go on from.

    Args:
        sae: the SAE to train.
        lr: learning rate of Adam.
        betas: of Adam; (0.9, 0.99) is BatchTopK's choice.
        warmup_steps: optimizer steps over which the learning rate rises linearly.
        warmup_from_zero: whether the first step has rate 0, as in dictionary_learning.
        warmup_every: optimizer steps after which the warm-up begins again, as in dictionary_learning's resampling.
        decay_fraction: share of `total_steps` at the end over which it falls linearly to 0.
        total_steps: optimizer steps of the whole training; the decay needs it, and annealing in an SAE.
        steps_per_epoch: for what an SAE does by epochs.
        max_grad_norm: gradients are scaled down to this global L2 norm; None leaves them.
        compile_backend: of torch.compile, for the SAE's step; None runs it as it is.

    Raises:
        ValueError: when a learning rate is not positive, a decay has no end, or several processes are to compile.
    """

    def __init__(
        self,
        sae: SAE,
        lr: float = 1e-3,
        betas: Sequence[float] = (0.9, 0.99),
        warmup_steps: int = 0,
        warmup_from_zero: bool = False,
        warmup_every: int | None = None,
        decay_fraction: float = 0.0,
        total_steps: int | None = None,
        steps_per_epoch: int | None = None,
        max_grad_norm: float | None = 1.0,
        compile_backend: str | None = None,
    ) -> None:
        super().__init__()
        if lr <= 0:
            raise ValueError(f"Expected a positive train.lr, got {lr}.")
        if not 0 <= decay_fraction <= 1 or (decay_fraction and total_steps is None):
            raise ValueError(
                "Expected a train.decay_fraction within 0 and 1, and total_steps with it, got "
                f"{decay_fraction} and {total_steps}."
            )
        self.automatic_optimization = False
        self.sae = sae
        self.lr, self.betas, self.max_grad_norm = lr, (betas[0], betas[1]), max_grad_norm
        self.total_steps, self.steps_per_epoch = total_steps, steps_per_epoch
        self.compile_backend = compile_backend
        self._compiled_step: Callable[..., SAEStep] | None = None
        self._learning_rate_factor = functools.partial(
            learning_rate_factor,
            warmup_steps=warmup_steps,
            decay_fraction=decay_fraction,
            total_steps=total_steps,
            warmup_from_zero=warmup_from_zero,
            restart_every=warmup_every,
        )
        self.fvu = FractionOfVarianceUnexplained(sae.d_in)
        self.l0 = L0()
        self.firing = FiringCounts(sae.n_latents)

    @property
    def n_steps(self) -> int:
        """Optimizer steps made so far."""
        return self.global_step

    def get_extra_state(self) -> Tensor:
        """Returns [2]: whether the SAE screens, on whatever machine, and its candidate threshold, -1 for none."""
        threshold = self.sae.candidate_threshold
        return torch.tensor([self.sae.screening, -1.0 if threshold is None else float(threshold)])

    def set_extra_state(self, state: Tensor) -> None:
        """Takes both up from a checkpoint."""
        self.sae.screening = bool(state[0])
        self.sae.candidate_threshold = None if state[1] < 0 else state[1].to(self.sae.threshold)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Returns Adam; its fused kernel is several times faster than the others on CPU and CUDA."""
        parameters = [parameter for parameter in self.sae.parameters() if parameter.requires_grad]
        return torch.optim.Adam(parameters, lr=self.lr, betas=self.betas, fused=True)

    def on_fit_start(self) -> None:
        """Compiles the step where that is asked for; it happens at the first batch, and again for other shapes."""
        if self.compile_backend is None:
            return
        if self.trainer.world_size > 1:
            raise ValueError(
                f"Expected train.compile_backend=null with several trainer.devices, got {self.compile_backend}: what "
                "processes tell each other in a step is not compiled. Give one of the two."
            )
        self._compiled_step = torch.compile(self.sae.step, backend=self.compile_backend)

    def training_step(self, block: list[Tensor], batch_idx: int) -> None:  # noqa: ARG002 - Lightning's signature
        """Makes one optimizer step per batch of the block and logs the means of what they gave; see `train_block`."""
        if not block:
            return
        values = self.train_block(block, self.optimizers(), self.global_step)
        self.log("step", float(self.global_step))
        self.log_dict(values)

    def train_block(self, block: list[Tensor], optimizer: Any, n_steps_before: int) -> dict[str, Tensor]:
        """Makes one optimizer step per batch of a block.

        Args:
            block: batches [<= batch_size, d_in], or image blocks [n_images, n_tokens, d_in].
            optimizer: the LightningOptimizer of what `configure_optimizers` returned.
            n_steps_before: optimizer steps made before.

        Returns:
            The means over the steps of what each gave, by key of the log.

        Raises:
            ValueError: when a loss is infinite or NaN.
        """
        if n_steps_before == 0:
            self.sae.initialize_from_(gather_rows(block[0]))
        sums: dict[str, Tensor] = {}
        losses: list[Tensor] = []
        for number, batch in enumerate(block):
            step = self._optimize(batch, optimizer, n_steps_before + number)
            losses.append(step["loss"])
            for name, value in step.items():
                sums[name] = sums[name] + value if name in sums else value
        if (position := first_not_finite(losses)) is not None:
            raise ValueError(
                f"Expected finite losses, got {float(losses[position])} at optimizer step "
                f"{n_steps_before + position + 1}: training diverged. {describe_extreme(block[position])} {SAE_REMEDY} "
                "Checkpoints are from before."
            )
        return {f"train/{name}": total / len(block) for name, total in sums.items()}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses to save what is not finite: the last checkpoint stays.

        Raises:
            ValueError: when a weight, a statistic or a moment of the optimizer is infinite or NaN.
        """
        require_finite_state(checkpoint, f"weights after optimizer step {self.global_step}")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses to go on from what is not finite.

        Raises:
            ValueError: when a weight, a statistic or a moment of the optimizer is infinite or NaN.
        """
        require_finite_state(checkpoint, "weights in the checkpoint to resume from", "Start over with overwrite=true.")

    def on_validation_epoch_start(self) -> None:
        """Starts the metrics anew, in memory that no other process holds: what a process is started with is shared."""
        for metric in (self.fvu, self.l0, self.firing):
            metric.reset()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:  # noqa: ARG002 - Lightning's signature
        """Adds a batch [n_rows, d_in] to the metrics of inference, in the units of `SAE.standardize`."""
        latents = self.sae.encode(batch)
        row_statistics = self.sae.normalize(batch)[1]
        reconstruction = self.sae.decode(latents, row_statistics)
        self.fvu.update(self.sae.standardize(batch), self.sae.standardize(reconstruction))
        self.l0.update(latents)
        self.firing.update(latents)
        if self.sae.observe_validation and not self.trainer.sanity_checking:
            self.sae.step(batch)

    def on_validation_epoch_end(self) -> None:
        """Logs the metrics of the whole validation set."""
        # All of it is equal in all processes already; Lightning wants to hear that it is to be.
        self.log("step", float(self.global_step), sync_dist=True)
        self.log_dict(self.validation_metrics(), sync_dist=True)

    def validation_metrics(self) -> dict[str, Tensor]:
        """Returns the metrics of the validation batches so far, by key of the log."""
        fvu = self.fvu.compute()
        dead_fraction = self.firing.compute()["dead_fraction"]
        return {
            "val/fvu": fvu,
            "val/explained_variance": 1 - fvu,
            "val/l0": self.l0.compute(),
            "val/dead_fraction": dead_fraction,
        }

    def _optimize(self, batch: Tensor, optimizer: Any, n_steps_before: int) -> dict[str, Tensor]:
        progress = TrainingProgress(n_steps_before, self.total_steps, self.steps_per_epoch)
        for group in optimizer.param_groups:
            group["lr"] = self.lr * self._learning_rate_factor(progress.step)
        self.sae.constrain_before_forward_()
        step = (self._compiled_step or self.sae.step)(batch, progress)
        loss = step.loss
        self.manual_backward(loss)
        all_sum_gradients_(self.sae.parameters())
        self.sae.constrain_gradient_()
        if self.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.sae.parameters(), self.max_grad_norm)
        self.sae.constrain_before_step_()
        optimizer.step()
        optimizer.zero_grad()
        self.sae.constrain_after_step_()
        self.sae.finish_step_(batch, progress, optimizer.optimizer)
        return {"loss": loss.detach(), **{name: value.detach() for name, value in step.losses.items()}, **step.metrics}
