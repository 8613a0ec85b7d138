"""JumpReLU: each neuron has a threshold of its own, trained through straight-through gradients."""

import math
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from src.models.saes.options import at_least, one_of
from src.models.saes.penalized import Penalized
from src.models.saes.shapes import Batch, PerNeuron, Rows
from src.models.saes.step import Code, Losses, TrainingProgress
from src.ops.dense_latents import Latents
from src.ops.jumprelu import exp_with_unit_gradient, jump, step, window_floor
from src.ops.processes import mean_over_rows
from src.ops.selection import calibrate_threshold
from src.ops.shapes import NeuronIds
from src.ops.sparse_latents import SparseLatents
from src.ops.sparse_products import pre_latent_pieces

L0Penalty = Literal["target_l0", "l0"]
ThresholdForm = Literal["raw", "log", "log_unit_gradient"]

# The encoder's first steps lower the L0 by half and more; from four times the target, it arrives there and not below,
# where the penalty has to revive neurons (300 steps on sums of 4 of 64 directions: 78 % against 70 % of the variance).
_START_OVER_TARGET = 4


class JumpReLU(Penalized):
    """JumpReLU SAE (Rajamanoharan et al. 2024, arXiv 2407.14435; see `src.ops.jumprelu`).

    Two things keep the L0 of others from falling: a threshold held as its logarithm moves by about `threshold * lr` per
    step of Adam, and a window that holds no pre-latents moves it not at all. By default the threshold is held as it
    is and starts among the pre-latents of the first batch, and a penalty that pushes both ways brings the L0 to
    `target_l0`. With inputs of about unit variance and Adam's rate of 1e-3 that takes some hundred steps.

    Args:
        d_in: dimension of the activations.
        n_latents: number of neurons; `expansion * d_in` when None.
        expansion: neurons per input dimension.
        penalty: "target_l0" is `l0_coefficient * (l0 / target_l0 - 1)^2` (Gemma Scope 2, dictionary_learning), with
            l0 the mean number of latents per row; "l0" is `l0_coefficient * l0` (the paper, sae-1n).
        l0_coefficient: weight of the penalty.
        target_l0: latents per row to reach.
        threshold_init: threshold of all neurons at the start; None: what leaves `4 * target_l0` latents per row of the
            first batch, or 0 when fewer are positive.
        bandwidth: width of the window around a threshold within which pre-latents train it.
        relu_before_threshold: the window is laid over the ReLU of the pre-latents (sae-1n).
        step_on_gated: the penalty's window is laid over the latents, so that what lies just below the threshold counts
            as 0 and does not train it (sae-1n, dictionary_learning).
        allow_negative_threshold: False clamps thresholds at 0 after each step; True may keep negative latents in
            training, which inference drops (dictionary_learning).
        threshold_form: "raw" trains the parameter `threshold`, "log" its logarithm `log_threshold`; with
            "log_unit_gradient" the derivative of the exponential is missing from the gradient (sae-1n).
        count_silent: whether silent neurons are counted; sae-1n does not, and so reports no dead ones.
        **options: of `SAE`.

    Raises:
        ValueError: when an option is unknown or out of its range.
    """

    log_threshold: Float[Tensor, " n_latents"]

    def __init__(
        self,
        d_in: int,
        n_latents: int | None = None,
        expansion: float = 4,
        *,
        penalty: L0Penalty = "target_l0",
        l0_coefficient: float = 1.0,
        target_l0: float = 16,
        threshold_init: float | None = None,
        bandwidth: float = 0.1,
        relu_before_threshold: bool = False,
        step_on_gated: bool = False,
        allow_negative_threshold: bool = False,
        threshold_form: ThresholdForm = "raw",
        count_silent: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(d_in, n_latents, expansion, **options)
        self.penalty = one_of("penalty", penalty, L0Penalty)
        self.l0_coefficient = at_least("l0_coefficient", l0_coefficient, 0)
        self.threshold_form = one_of("threshold_form", threshold_form, ThresholdForm)
        for name, value in (("target_l0", target_l0), ("bandwidth", bandwidth)):
            if value <= 0:
                raise ValueError(f"Expected a positive sae.{name}, got {value}.")
        if threshold_form != "raw" and (threshold_init is None or threshold_init <= 0):
            raise ValueError(
                f"Expected a positive sae.threshold_init with threshold_form={threshold_form}, got {threshold_init}."
            )
        self.target_l0, self.threshold_init, self.bandwidth = target_l0, threshold_init, bandwidth
        self.relu_before_threshold, self.step_on_gated = relu_before_threshold, step_on_gated
        self.allow_negative_threshold, self.count_silent = allow_negative_threshold, count_silent

        del self.threshold  # the base's is one number for all neurons, and not trained
        start = torch.full((self.n_latents,), threshold_init or 0.0)
        if threshold_form == "raw":
            self.threshold = nn.Parameter(start)
        else:
            self.log_threshold = nn.Parameter(start.log())

    @property
    def trained_threshold(self) -> PerNeuron:
        """The thresholds [n_latents] with the gradient of training."""
        if self.threshold_form == "raw":
            return self.threshold
        return self.log_threshold.exp() if self.threshold_form == "log" else exp_with_unit_gradient(self.log_threshold)

    @property
    def inference_threshold(self) -> PerNeuron:
        """The thresholds [n_latents], not negative and without a gradient."""
        return self.trained_threshold.detach().clamp_min(0)

    def code(self, centred: Rows, progress: TrainingProgress, columns: NeuronIds | None) -> Code:
        """Lists what is above its threshold or trains it; see `SAE.code`."""
        threshold = self._threshold
        floor = window_floor(threshold.detach(), self.bandwidth)
        if self.relu_before_threshold:  # all negative pre-latents lie in a window that reaches 0
            floor = floor.masked_fill(threshold.detach() < self.bandwidth / 2, -math.inf)
        listed, asked = self.pre_latents_above(centred, floor, columns)
        values = jump(listed.values, listed.per_neuron(threshold), self.bandwidth, rectify=self.relu_before_threshold)
        return Code(listed, listed.with_values(values), asked)

    def penalties(self, code: Code, inputs: Rows, reconstruction: Rows, progress: TrainingProgress) -> Losses:
        """Returns the penalty on the L0; see `SAE.penalties`."""
        l0 = self._l0(code.latents if self.step_on_gated else code.pre_latents)
        penalty = l0 if self.penalty == "l0" else (l0 / self.target_l0 - 1).square()
        return {"l0": self.l0_coefficient * self.sparsity_scale(progress) * penalty}

    def observe_(self, latents: Latents, progress: TrainingProgress) -> None:
        """Moves the counters of silent neurons where there are any; see `SAE.observe_`."""
        if self.count_silent:
            super().observe_(latents, progress)

    @torch.no_grad()
    def constrain_after_step_(self) -> None:
        """Restores unit-norm atoms and thresholds that are not negative; see `SAE.constrain_after_step_`."""
        super().constrain_after_step_()
        if self.threshold_form == "raw" and not self.allow_negative_threshold:
            self.threshold.clamp_min_(0)

    @torch.no_grad()
    def initialize_from_(self, activations: Batch) -> None:
        """Sets b_dec and, where they have no stated start, the thresholds; see `SAECore.initialize_from_`."""
        super().initialize_from_(activations)
        if self.threshold_init is None:
            inputs, _ = self.normalize(activations.reshape(-1, self.d_in))
            pieces = pre_latent_pieces(self.centre(inputs), self.W_enc, self.encoder_bias)
            start = calibrate_threshold(pieces, _START_OVER_TARGET * self.target_l0, inputs.shape[0])
            self.threshold.copy_(start.expand(self.n_latents))

    @property
    def _threshold(self) -> Tensor:
        return self.trained_threshold if self.training else self.inference_threshold

    def _l0(self, listed: Latents) -> Tensor:
        """Counts the entries above their thresholds, per row on average, with the gradient of the penalty."""
        threshold, values = self._threshold, listed.values.detach()
        if self.relu_before_threshold:
            values = values.clamp_min(0)
        count = step(values, listed.per_neuron(threshold), self.bandwidth).sum()
        if self.step_on_gated and isinstance(listed, SparseLatents):
            # What is not listed is a latent of 0, which a threshold near 0 or below has in its window or counts.
            unlisted = listed.n_rows - torch.bincount(listed.neuron_ids, minlength=self.n_latents)
            count = count + (unlisted * step(torch.zeros_like(threshold), threshold, self.bandwidth)).sum()
        return mean_over_rows(count, listed.n_rows)
