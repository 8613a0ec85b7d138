"""ReLU with an L1 penalty: the first kind of SAE, with the options that kept it alive."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from src.models.saes.options import at_least, one_of
from src.models.saes.penalized import Penalized
from src.models.saes.shapes import Batch, PerNeuron, Rows
from src.models.saes.step import Code, Losses, TrainingProgress
from src.ops.dense_latents import Latents
from src.ops.ghost_gradients import ghost_loss
from src.ops.losses import mean_l1, norm_scaled_errors
from src.ops.processes import gather_rows
from src.ops.resampling import draw_rows, forget_moments_, resample_
from src.ops.shapes import NeuronIds

ResampleWeights = Literal["norm", "squared_norm"]


class ReLUL1(Penalized):
    """SAE with ReLU latents and an L1 penalty (Bricken et al. 2023, "Towards Monosemanticity").

    Args:
        d_in: dimension of the activations.
        n_latents: number of neurons; `expansion * d_in` when None.
        expansion: neurons per input dimension.
        l1_coefficient: weight of the mean over rows of the sum of latents.
        l1_by_atom_norm: count a latent times its atom's length, which makes the constraint on atoms needless (Conerly
            et al. 2024, "Update on how we train SAEs", April 2024).
        ghost_gradients: train dead neurons on the residual (see `src.ops.ghost_gradients`), for
            `error_scale="input_norm"`; a neuron is dead by `dead_after` before the batch.
        resample_every: optimizer steps after which dead neurons are resampled (see `src.ops.resampling`), first after
            the first step; None: never.
        resample_every_epochs: the same in epochs, first at the end of the given number; None: never.
        resample_silent_for: batches of silence that make a neuron be resampled; half of the interval, rounded down,
            and one when None (dictionary_learning's "more than half").
        resample_weights: rows are drawn in proportion to their residual's "norm" (dictionary_learning) or
            "squared_norm" (Bricken et al. 2023, DN-CBM), from the batch at hand; DN-CBM draws from 20,000 rows.
        resample_unit_inputs: scale inputs to unit length before they become encoder rows; False is
            dictionary_learning's defect.
        resample_reset: count resampled neurons as just fired; False is dictionary_learning's.
        **options: of `SAE`.

    Raises:
        ValueError: when an option is unknown, out of its range, or does not go with another.
    """

    def __init__(
        self,
        d_in: int,
        n_latents: int | None = None,
        expansion: float = 4,
        *,
        l1_coefficient: float = 1e-3,
        l1_by_atom_norm: bool = False,
        ghost_gradients: bool = False,
        resample_every: int | None = None,
        resample_every_epochs: int | None = None,
        resample_silent_for: int | None = None,
        resample_weights: ResampleWeights = "squared_norm",
        resample_unit_inputs: bool = True,
        resample_reset: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(d_in, n_latents, expansion, **options)
        self.l1_coefficient = at_least("l1_coefficient", l1_coefficient, 0)
        self.l1_by_atom_norm, self.ghost_gradients = l1_by_atom_norm, ghost_gradients
        self.resample_every, self.resample_every_epochs = resample_every, resample_every_epochs
        self.resample_silent_for = resample_silent_for
        for name in ("resample_every", "resample_every_epochs", "resample_silent_for"):
            at_least(name, 1 if getattr(self, name) is None else getattr(self, name), 1)
        self.resample_weights = one_of("resample_weights", resample_weights, ResampleWeights)
        self.resample_unit_inputs, self.resample_reset = resample_unit_inputs, resample_reset
        if ghost_gradients and (self.error_scale != "input_norm" or self.aux_coefficient):
            raise ValueError(
                "Expected sae.ghost_gradients with error_scale=input_norm and aux_coefficient=0, got "
                f"{self.error_scale} and {self.aux_coefficient}."
            )
        if resample_every is not None and resample_every_epochs is not None:
            raise ValueError("Expected one of sae.resample_every and sae.resample_every_epochs, got both.")
        if self.dead_unit != "batches" and (resample_every is not None or resample_every_epochs is not None):
            raise ValueError(f"Expected sae.dead_unit=batches with resampling, got {self.dead_unit}.")

    @property
    def saelens_architecture(self) -> str:
        """SAELens's "standard"."""
        return "standard"

    def saelens_parameters(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns the weights as they are; see `SAECore.saelens_parameters`."""
        return weights

    def code(self, centred: Rows, progress: TrainingProgress, columns: NeuronIds | None) -> Code:
        """Keeps what is above zero, in training as at inference; see `SAE.code`."""
        pre_latents, asked = self.pre_latents_above(centred, torch.zeros_like(self.threshold), columns)
        latents = pre_latents.with_values(F.relu(pre_latents.values))
        return Code(latents, latents, asked)

    def asked_columns(self, n_rows: int) -> NeuronIds | None:
        """Returns the neurons that ghost gradients train, dead before the batch; see `SAE.asked_columns`."""
        if not self.ghost_gradients:
            return super().asked_columns(n_rows)
        dead = (self.silent_for >= self.dead_after).nonzero().squeeze(1)
        return dead if self.training and dead.numel() else None

    def penalties(self, code: Code, inputs: Rows, reconstruction: Rows, progress: TrainingProgress) -> Losses:
        """Returns what makes latents sparse, and the term of ghost gradients where it applies; see `SAE.penalties`."""
        norms = torch.linalg.vector_norm(self.W_dec, dim=1) if self.l1_by_atom_norm else None
        losses = self.sparsity_losses(code.latents, norms, progress)
        if self.ghost_gradients:  # named in every step, as the auxiliary loss is
            losses["ghost"] = reconstruction.new_zeros(())
        if self.ghost_gradients and code.columns is not None:
            dead = (self.silent_for >= self.dead_after).nonzero().squeeze(1)
            errors = norm_scaled_errors(reconstruction, inputs)
            losses["ghost"] = ghost_loss(code.columns, self.W_dec[dead], inputs - reconstruction, errors)
        return losses

    def sparsity_losses(self, latents: Latents, norms: PerNeuron | None, progress: TrainingProgress) -> Losses:
        """Returns the L1 term of latents that count times `norms` [n_latents] where those are given."""
        return {"l1": self.l1_coefficient * self.sparsity_scale(progress) * mean_l1(latents, norms)}

    @torch.no_grad()
    def finish_step_(self, activations: Batch, progress: TrainingProgress, optimizer: torch.optim.Optimizer) -> None:
        """Resamples dead neurons when it is time; see `SAE.finish_step_`.

        Raises:
            ValueError: when the interval is in epochs and their length is not known.
        """
        interval = self.resample_every
        if interval is not None:
            is_time = progress.step % interval == 0
        elif self.resample_every_epochs is not None:
            if not progress.steps_per_epoch:
                raise ValueError(
                    f"Expected steps_per_epoch with sae.resample_every_epochs, got {progress.steps_per_epoch}."
                )
            interval = self.resample_every_epochs * progress.steps_per_epoch
            is_time = (progress.step + 1) % interval == 0 and progress.step + 1 != progress.total_steps
        else:
            return
        silent_for = interval // 2 + 1 if self.resample_silent_for is None else self.resample_silent_for
        dead = (self.silent_for >= silent_for).nonzero().squeeze(1)
        if not is_time or not dead.numel():
            return
        inputs, _ = self.normalize(gather_rows(activations).reshape(-1, self.d_in))
        reconstruction = self.reconstructions(self.encode_inputs(self.centre(inputs)))[-1]
        errors = torch.linalg.vector_norm(inputs - reconstruction, dim=1)
        if self.resample_weights == "squared_norm":
            errors = errors.square()
        drawn = draw_rows(errors, dead.numel(), seed=progress.step)
        dead = dead[: drawn.numel()]
        resample_(self.W_enc, self.b_enc, self.W_dec, dead, inputs[drawn], unit_encoder_rows=self.resample_unit_inputs)
        for parameter in (self.W_enc, self.b_enc, self.W_dec):
            if parameter.requires_grad:
                forget_moments_(optimizer, parameter, dead)
        if self.resample_reset:
            self.silent_for[dead] = 0
