"""The contract of every sparse autoencoder in training: one batch in, named losses and moved statistics out."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from src.models.saes.core import SAECore
from src.models.saes.options import DeadUnit, DecoderConstraint, ErrorScale, at_least, one_of
from src.models.saes.shapes import Batch, Rows
from src.models.saes.step import Code, Losses, SAEStep, TrainingProgress
from src.ops.decoder import normalize_rows_, project_gradient_
from src.ops.dense_latents import Latents, decode, encode_columns
from src.ops.encoder_product import EncoderProduct
from src.ops.losses import (
    auxk_reconstruction,
    mean_of_elements,
    mean_squared_error,
    norm_scaled_errors,
    summed_squared_error,
    unexplained_share,
)
from src.ops.processes import all_counts, all_min, mean_over_rows
from src.ops.shapes import Columns, NeuronIds, Scalar
from src.ops.sparse_latents import SparseLatents
from src.ops.sparse_products import encode_kept


class SAE(SAECore, ABC):
    """An SAE that can be trained. A subclass says what training keeps of the pre-latents and adds its penalties.

    Several processes may share a batch, each with some of its rows (see `src.ops.processes`): selections, statistics,
    losses and metrics are those of the whole batch, gradients are those of the process's own rows.

    Args:
        d_in: dimension of the activations.
        n_latents: number of neurons; `expansion * d_in` when None.
        expansion: neurons per input dimension.
        decoder_constraint: unit-norm atoms restored after each optimizer step, before it (sae-1n: they are off the
            sphere by one step), before the forward pass (PatchSAE), or not at all.
        error_scale: squared errors averaged over rows and d_in ("mean"), summed over d_in ("sum", dictionary_learning
            and SAELens), or over the input's norm ("input_norm", PatchSAE). It sets what coefficients mean.
        class_token_weight: with "input_norm" and image blocks, the weight of token 0's errors in training.
        sparsity_warmup_steps: optimizer steps over which sparsity penalties rise linearly from 0.
        dead_after: a neuron is dead when it was silent for this many `dead_unit` of training.
        dead_unit: "batches" or "tokens" (rows).
        aux_coefficient: weight of AuxK (Gao et al. 2024); 0 switches it off.
        k_aux: most dead latents that AuxK keeps per row; `d_in // 2` when None (Gao et al. 2024).
        detach_residual: whether AuxK's target is a constant.
        aux_over_variance: divide AuxK's error by the target's variance (dictionary_learning) instead of scaling it as
            the main error.
        observe_validation: let validation batches move the running statistics, as sae-1n does.
        **options: of `SAECore`.

    Raises:
        ValueError: when an option is unknown or out of its range.
    """

    threshold_l0: ClassVar[str | None] = None
    """The attribute with the L0 that inference's threshold is calibrated to; None: there is no such threshold."""

    silent_for: Int64[Tensor, " n_latents"]

    def __init__(
        self,
        d_in: int,
        n_latents: int | None = None,
        expansion: float = 4,
        *,
        decoder_constraint: DecoderConstraint = "after_step",
        error_scale: ErrorScale = "mean",
        class_token_weight: float = 1.0,
        sparsity_warmup_steps: int = 0,
        dead_after: int = 5,
        dead_unit: DeadUnit = "batches",
        aux_coefficient: float = 0.0,
        k_aux: int | None = None,
        detach_residual: bool = True,
        aux_over_variance: bool = False,
        observe_validation: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(d_in, n_latents, expansion, **options)
        self.decoder_constraint = one_of("decoder_constraint", decoder_constraint, DecoderConstraint)
        self.error_scale = one_of("error_scale", error_scale, ErrorScale)
        self.class_token_weight = at_least("class_token_weight", class_token_weight, 0)
        self.sparsity_warmup_steps = at_least("sparsity_warmup_steps", sparsity_warmup_steps, 0)
        self.dead_after = at_least("dead_after", dead_after, 1)
        self.dead_unit = one_of("dead_unit", dead_unit, DeadUnit)
        self.aux_coefficient = at_least("aux_coefficient", aux_coefficient, 0)
        self.k_aux = at_least("k_aux", max(d_in // 2, 1) if k_aux is None else k_aux, 1)
        self.detach_residual, self.aux_over_variance = detach_residual, aux_over_variance
        self.observe_validation = observe_validation

        self.register_buffer("silent_for", torch.zeros(self.n_latents, dtype=torch.int64))

    @abstractmethod
    def code(self, centred: Rows, progress: TrainingProgress, columns: NeuronIds | None) -> Code:
        """Codes a batch with a graph, as training does, or in evaluation mode as inference does.

        Args:
            centred: [n_rows, d_in], inputs less b_dec where that is applied, without a gradient: b_dec receives its
                own through the encoder products' functions.
            progress: where training stands.
            columns: neurons whose pre-latents AuxK will ask for; in `Code.columns` when not None.
        """

    def encode_selected(
        self, centred: Rows, columns: NeuronIds | None, select: Callable[[EncoderProduct], SparseLatents]
    ) -> tuple[SparseLatents, Columns | None]:
        """Encodes a batch with the gradient of the pre-latents that are selected.

        Args:
            centred: as `code` receives them.
            columns: neurons whose pre-latents are asked for, whatever they are.
            select: chooses among pre-latents.

        Returns:
            The selected pre-latents, and those of `columns`.
        """
        product = self.product(centred, columns)
        with torch.no_grad():
            kept, asked = select(product), product.columns()
        weights = (self.W_enc, self.encoder_bias, self.bias_through_input)
        if columns is not None and asked is not None:
            asked = encode_columns(asked, columns, centred, *weights)
        return encode_kept(kept, centred, *weights), asked

    def penalties(self, code: Code, inputs: Rows, reconstruction: Rows, progress: TrainingProgress) -> Losses:
        """Returns the named, weighted terms of the loss besides the error and AuxK.

        Inputs and reconstruction are [n_rows, d_in], in the space the SAE works in.
        """
        return {}

    def asked_columns(self, n_rows: int) -> NeuronIds | None:
        """Returns the neurons whose pre-latents a batch of `n_rows` needs whatever they are: AuxK's.

        They are those that are dead after the batch unless they fire in it.
        """
        if not self.aux_coefficient or not (self.training or self.observe_validation):
            return None
        nearly_dead = (self.silent_for + self._silence_of(n_rows) >= self.dead_after).nonzero().squeeze(1)
        return nearly_dead if nearly_dead.numel() else None

    def reconstructions(self, latents: Latents) -> list[Float[Tensor, "{latents.n_rows} {self.d_in}"]]:
        """Returns the reconstructions [n_rows, d_in] that the error is taken of; the last one is the SAE's."""
        return [decode(latents, self.atoms) + self.b_dec]

    def mean_error(self, reconstructions: Sequence[Rows], inputs: Batch) -> Scalar:
        """Returns the error of `reconstructions` [n_rows, d_in] of inputs [..., d_in]."""
        return self.error(reconstructions[-1].view(inputs.shape), inputs)

    def step(
        self,
        activations: Float[Tensor, "*rows d_in"],
        progress: TrainingProgress = TrainingProgress(),  # noqa: B008
    ) -> SAEStep:
        """Runs a batch: losses with a graph, and in training mode the running statistics.

        In evaluation mode latents are those of inference, and no state moves unless `observe_validation`.

        Args:
            activations: [n_rows, d_in], or image blocks [n_images, n_tokens, d_in].
            progress: where training stands.
        """
        shape = activations.shape
        inputs, _ = self.normalize(activations.reshape(-1, shape[-1]))
        moves = self.training or self.observe_validation
        columns = self.asked_columns(inputs.shape[0])
        code = self.code(self.centre(inputs), progress, columns)
        reconstructions = self.reconstructions(code.latents)
        losses = {"mse": self.mean_error(reconstructions, inputs.view(shape))}
        losses |= self.penalties(code, inputs, reconstructions[-1], progress)
        if moves:
            self.observe_(code.latents.detach(), progress)
        dead = (self.silent_for >= self.dead_after).nonzero().squeeze(1)
        if self.aux_coefficient:  # named in every step, or what is logged of a step is that of an earlier one
            losses["aux"] = losses["mse"].new_zeros(())
        if self.aux_coefficient and code.columns is not None and columns is not None and dead.numel():
            still_dead = torch.isin(columns, dead, assume_unique=True).nonzero().squeeze(1)
            pre_latents = code.columns if len(still_dead) == len(columns) else code.columns[:, still_dead]
            losses["aux"] = self.aux_coefficient * self._auxk(inputs, reconstructions[-1], dead, pre_latents)
        return SAEStep(code.latents, reconstructions[-1], losses, self._metrics(code.latents, dead))

    @torch.no_grad()
    def observe_(self, latents: Latents, progress: TrainingProgress) -> None:
        """Moves the counters of silent neurons by one batch of latents."""
        self.silent_for.add_(self._silence_of(latents.n_rows))
        if isinstance(latents, SparseLatents):
            self.silent_for.index_fill_(0, latents.neuron_ids[latents.values > 0], 0)
        else:
            self.silent_for.masked_fill_((latents.values > 0).any(0), 0)
        self.silent_for.copy_(all_min(self.silent_for))  # 0 where a neuron fired in any process

    def finish_step_(self, activations: Batch, progress: TrainingProgress, optimizer: torch.optim.Optimizer) -> None:
        """Does what follows an optimizer step, e.g. resampling; `progress` is that of before the step."""

    def sparsity_scale(self, progress: TrainingProgress) -> float:
        """Returns what sparsity penalties are multiplied by at a step."""
        return min(progress.step / self.sparsity_warmup_steps, 1.0) if self.sparsity_warmup_steps else 1.0

    def error(self, reconstruction: Batch, inputs: Batch) -> Scalar:
        """Returns the error of a reconstruction under `error_scale`, both [..., d_in]."""
        if self.error_scale == "input_norm":
            weight = self.class_token_weight if self.training and inputs.ndim > 2 else 1.0
            return mean_of_elements(norm_scaled_errors(reconstruction, inputs, weight))
        return (mean_squared_error if self.error_scale == "mean" else summed_squared_error)(reconstruction, inputs)

    def constrain_before_forward_(self) -> None:
        """Applies the "before_forward" constraint; called first in a training step."""
        if self.decoder_constraint == "before_forward":
            normalize_rows_(self.W_dec.data)

    def constrain_gradient_(self) -> None:
        """Keeps the decoder's gradient on the sphere; called between backward and clipping."""
        if self.decoder_constraint in ("after_step", "before_forward") and self.W_dec.grad is not None:
            project_gradient_(self.W_dec.grad, self.W_dec, is_unit_norm=self.atom_norm_init == 1)

    def constrain_before_step_(self) -> None:
        """Applies the "before_step" constraint; called between clipping and the optimizer step."""
        if self.decoder_constraint == "before_step" and self.W_dec.grad is not None:
            normalize_rows_(self.W_dec.data)
            project_gradient_(self.W_dec.grad, self.W_dec)

    def constrain_after_step_(self) -> None:
        """Restores unit-norm atoms; called after the optimizer step."""
        if self.decoder_constraint == "after_step":
            normalize_rows_(self.W_dec.data)

    def _silence_of(self, n_rows: int) -> int:
        """Returns how much longer a neuron has been silent after a batch of which this process holds `n_rows`."""
        return all_counts(n_rows, like=self.silent_for)[0] if self.dead_unit == "tokens" else 1

    def _auxk(self, inputs: Tensor, reconstruction: Tensor, dead: Tensor, pre_latents: Tensor) -> Tensor:
        residual = inputs - reconstruction
        if self.detach_residual:
            residual = residual.detach()
        # Its gradient holds the dead atoms' rows only, where an index would make one of all atoms.
        dead_atoms = torch.nn.functional.embedding(dead, self.atoms, sparse=True)
        rebuilt = auxk_reconstruction(pre_latents, dead_atoms, self.k_aux)
        return unexplained_share(residual, rebuilt) if self.aux_over_variance else self.error(rebuilt, residual)

    def _metrics(self, latents: Latents, dead: Tensor) -> dict[str, Tensor]:
        return {
            "l0": mean_over_rows(torch.count_nonzero(latents.values.detach() > 0), latents.n_rows),
            "dead_fraction": torch.tensor(dead.numel() / self.n_latents, device=latents.values.device),
        }
