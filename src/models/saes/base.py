"""The contract of every sparse autoencoder: raw activations in, sparse latents and raw reconstructions out."""

import inspect
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypedDict

import torch
from torch import Tensor, nn

from src.ops.decoder import normalize_rows_, project_gradient_
from src.ops.sparse_latents import SparseLatents
from src.ops.sparse_products import decode_sparse, pre_latents_above

# Rows that inference holds at once, so that a whole slide needs no copy of its activations.
_ENCODE_ROWS = 8192
# sae-1n's and SAELens' guard against a constant row.
_UNIT_NORM_EPS = 1e-5

EncoderInit = Literal["tied", "kaiming"]
BDecInit = Literal["mean", "zero"]
DecoderConstraint = Literal["after_step", "before_step", "none"]


class SAEOptions(TypedDict, total=False):
    """The options that every architecture hands to `SAE`, described there."""

    input_unit_norm: bool
    use_b_enc: bool
    encoder_init: EncoderInit
    b_dec_init: BDecInit
    decoder_constraint: DecoderConstraint
    observe_validation: bool


class RowStatistics(NamedTuple):
    """What `input_unit_norm` removed from each row and `decode` puts back: mean and scale, both [n_rows, 1]."""

    mean: Tensor
    scale: Tensor


@dataclass(frozen=True)
class SAEStep:
    """One pass over a batch, in the space the SAE works in (after all input normalisation).

    Attributes:
        latents: what the sparsifier kept; the values carry the gradient.
        reconstruction: [n_rows, d_in].
        losses: named terms, already weighted; their sum is the loss.
        metrics: named 0-d tensors to log, without gradient.
    """

    latents: SparseLatents
    reconstruction: Tensor
    losses: dict[str, Tensor]
    metrics: dict[str, Tensor]

    @property
    def loss(self) -> Tensor:
        """The sum of the named losses."""
        return torch.stack(list(self.losses.values())).sum()


class SAE(nn.Module, ABC):
    """Sparse autoencoder with one row per neuron in both weights.

    An input x is standardised with `input_mean` and `input_scale` (identity unless set), optionally normalised per
    row, and encoded to pre-latents `(x - b_dec) W_enc.T + b_enc`. Inference keeps pre-latents strictly above
    `threshold`. A subclass says in `step` what training keeps and what it minimises.

    Args:
        d_in: dimension of the activations.
        n_latents: number of neurons; `expansion * d_in` when None.
        expansion: neurons per input dimension.
        input_unit_norm: subtract each row's mean and divide by its standard deviation (ddof 1) plus 1e-5; undone when
            decoding.
        use_b_enc: False leaves the encoder bias out, as sae-1n does.
        encoder_init: "tied" starts with W_enc equal to the unit-norm decoder; "kaiming" scales it as sae-1n does,
            uniform with fan-in n_latents.
        b_dec_init: "mean" starts b_dec at the mean of the first batch, "zero" leaves it at zero.
        decoder_constraint: unit-norm atoms restored after each optimizer step, before it (sae-1n, so that they are
            off the sphere by one step), or not at all.
        observe_validation: let validation batches move the running statistics, as sae-1n does.

    Raises:
        ValueError: when a size is not positive or an option is unknown.
    """

    threshold: Tensor
    input_mean: Tensor
    input_scale: Tensor

    def __init__(
        self,
        d_in: int,
        n_latents: int | None = None,
        expansion: float = 4,
        *,
        input_unit_norm: bool = False,
        use_b_enc: bool = True,
        encoder_init: EncoderInit = "tied",
        b_dec_init: BDecInit = "mean",
        decoder_constraint: DecoderConstraint = "after_step",
        observe_validation: bool = False,
    ) -> None:
        super().__init__()
        n_latents = round(expansion * d_in) if n_latents is None else n_latents
        if d_in < 1 or n_latents < 1:
            raise ValueError(f"Expected positive sizes, got d_in={d_in} and n_latents={n_latents}.")
        _expect("encoder_init", encoder_init, ("tied", "kaiming"))
        _expect("b_dec_init", b_dec_init, ("mean", "zero"))
        _expect("decoder_constraint", decoder_constraint, ("after_step", "before_step", "none"))
        self.d_in, self.n_latents, self.expansion = d_in, n_latents, n_latents / d_in
        self.input_unit_norm, self.use_b_enc = input_unit_norm, use_b_enc
        self.encoder_init, self.b_dec_init = encoder_init, b_dec_init
        self.decoder_constraint, self.observe_validation = decoder_constraint, observe_validation

        W_dec = normalize_rows_(torch.randn(n_latents, d_in))
        if encoder_init == "kaiming":
            bound = math.sqrt(6 / n_latents)
            W_enc = torch.empty(n_latents, d_in).uniform_(-bound, bound)
            W_dec = normalize_rows_(W_enc.clone())
        else:
            W_enc = W_dec.clone()
        self.W_enc, self.W_dec = nn.Parameter(W_enc), nn.Parameter(W_dec)
        self.b_enc = nn.Parameter(torch.zeros(n_latents), requires_grad=use_b_enc)
        self.b_dec = nn.Parameter(torch.zeros(d_in))
        self.register_buffer("threshold", torch.zeros(()))
        self.register_buffer("input_mean", torch.zeros(d_in))
        self.register_buffer("input_scale", torch.ones(d_in))

    @abstractmethod
    def step(self, activations: Tensor) -> SAEStep:
        """Runs a batch [n_rows, d_in]: losses with a graph, and in training mode the running statistics.

        In evaluation mode latents are those of inference, and no state moves unless `observe_validation`.
        """

    def init_arguments(self) -> dict[str, Any]:
        """Returns the constructor's arguments: each is kept as the attribute of its name, sizes as resolved."""
        names = [
            name
            for owner in type(self).__mro__
            if issubclass(owner, SAE)
            for name, parameter in inspect.signature(owner.__init__).parameters.items()
            if name != "self" and parameter.kind is not inspect.Parameter.VAR_KEYWORD
        ]
        return {name: getattr(self, name) for name in dict.fromkeys(names)}

    def set_input_statistics(self, mean: Tensor, scale: Tensor) -> None:
        """Fixes the standardisation `(x - mean) / scale` that encode applies and decode undoes, both [d_in].

        Raises:
            ValueError: when the shapes or a scale do not fit, or rows are normalised already.
        """
        for name, values in (("mean", mean), ("scale", scale)):
            if values.shape != (self.d_in,):
                raise ValueError(f"Expected an input {name} of shape ({self.d_in},), got {tuple(values.shape)}.")
        if not bool((scale > 0).all()):
            raise ValueError(f"Expected positive input scales, got a smallest of {float(scale.min())}.")
        if self.input_unit_norm:
            raise ValueError(
                "Expected input_unit_norm=false with standardised activations, got true: set dataset.standardize=false."
            )
        self.input_mean.copy_(mean)
        self.input_scale.copy_(scale)

    def normalize(self, activations: Tensor) -> tuple[Tensor, RowStatistics | None]:
        """Returns raw activations [n_rows, d_in] in the SAE's space, and what was taken from each row."""
        if activations.ndim != 2 or activations.shape[1] != self.d_in:
            raise ValueError(f"Expected activations [n_rows, {self.d_in}], got {tuple(activations.shape)}.")
        if self.input_unit_norm:
            mean = activations.mean(1, keepdim=True)
            centred = activations - mean
            scale = centred.std(1, keepdim=True) + _UNIT_NORM_EPS
            return centred / scale, RowStatistics(mean, scale)
        return self.standardize(activations), None

    def standardize(self, activations: Tensor) -> Tensor:
        """Returns `(activations - input_mean) / input_scale`: the units that errors are measured in.

        In raw units a few wide features would decide, and the constant ones, whose scale is 1 by convention.
        """
        factor = self.input_scale.reciprocal()
        return torch.addcmul(-self.input_mean * factor, activations, factor)

    def pre_latents(self, activations: Tensor) -> Tensor:
        """Returns all pre-latents, dense [n_rows, n_latents]."""
        centred = self.normalize(activations)[0] - self.b_dec
        return nn.functional.linear(centred, self.W_enc, self.encoder_bias)

    @torch.no_grad()
    def encode(self, activations: Tensor) -> SparseLatents:
        """Returns the latents of inference for [n_rows, d_in], made in pieces of rows."""
        pieces = [
            pre_latents_above(
                self.normalize(rows)[0].sub_(self.b_dec), self.W_enc, self.encoder_bias, self.threshold.clamp_min(0)
            )
            for rows in activations.split(_ENCODE_ROWS)
        ]
        return SparseLatents.cat(pieces)

    def decode(self, latents: SparseLatents, row_statistics: RowStatistics | None = None) -> Tensor:
        """Returns reconstructions of raw activations [n_rows, d_in].

        Args:
            latents: what to decode.
            row_statistics: with `input_unit_norm`, the statistics that `normalize` returned for these rows.

        Raises:
            ValueError: when the rows were normalised and their statistics are missing.
        """
        if self.input_unit_norm and row_statistics is None:
            raise ValueError(
                "Expected row statistics to decode with input_unit_norm, got none: use reconstruct(activations), or "
                "pass those that normalize(activations) returned."
            )
        reconstruction = decode_sparse(latents, self.W_dec) + self.b_dec
        if row_statistics is not None:
            return reconstruction * row_statistics.scale + row_statistics.mean
        return torch.addcmul(self.input_mean, reconstruction, self.input_scale)

    def reconstruct(self, activations: Tensor) -> Tensor:
        """Returns what inference makes of raw activations [n_rows, d_in]."""
        row_statistics = self.normalize(activations)[1] if self.input_unit_norm else None
        return self.decode(self.encode(activations), row_statistics)

    def forward(self, activations: Tensor) -> Tensor:
        """Returns `reconstruct(activations)`."""
        return self.reconstruct(activations)

    @property
    def encoder_bias(self) -> Tensor | None:
        """The encoder bias, or None when the SAE has none."""
        return self.b_enc if self.use_b_enc else None

    @torch.no_grad()
    def initialize_from_(self, activations: Tensor) -> None:
        """Sets what starts from data, from the first training batch [n_rows, d_in]."""
        if self.b_dec_init == "mean":
            self.b_dec.copy_(self.normalize(activations)[0].mean(0))

    def constrain_gradient_(self) -> None:
        """Keeps the decoder's gradient on the sphere; called between backward and clipping."""
        if self.decoder_constraint == "after_step" and self.W_dec.grad is not None:
            project_gradient_(self.W_dec.grad, self.W_dec)

    def constrain_before_step_(self) -> None:
        """Applies the "before_step" constraint; called between clipping and the optimizer step."""
        if self.decoder_constraint == "before_step" and self.W_dec.grad is not None:
            normalize_rows_(self.W_dec.data)
            project_gradient_(self.W_dec.grad, self.W_dec)

    def constrain_after_step_(self) -> None:
        """Restores unit-norm atoms; called after the optimizer step."""
        if self.decoder_constraint == "after_step":
            normalize_rows_(self.W_dec.data)


def _expect(option: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"Expected sae.{option} to be one of {allowed}, got {value!r}.")
