"""What every sparse autoencoder is at inference: raw activations in, sparse latents and raw reconstructions out."""

import inspect
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from src.models.saes.options import BDecInit, EncoderInit, InputNorm, at_least, one_of
from src.models.saes.shapes import Atoms, Batch, PerNeuron, PreLatents, Rows
from src.ops.decoder import normalize_rows_
from src.ops.dense_latents import Latents, decode
from src.ops.encoder_product import EncoderProduct
from src.ops.geometric_median import geometric_median
from src.ops.row_norm import RowStatistics, layer_norm_rows, z_score_rows
from src.ops.screening_bound import WeightsOf, remembered_weights, screening_weights
from src.ops.shapes import NeuronIds, PerInput, Scalar
from src.ops.sparse_latents import SparseLatents

# Rows that inference holds at once, so that a whole slide needs no copy of its activations.
_ENCODE_ROWS = 8192


class SAECore(nn.Module):
    """Sparse autoencoder with one row per neuron in both weights.

    An input x is standardised with `input_mean` and `input_scale` (identity unless set), optionally normalised per
    row, and encoded to pre-latents `(x - b_dec) W_enc.T + b_enc`. Here inference keeps what exceeds
    `inference_threshold`; some architectures choose otherwise.

    Args:
        d_in: dimension of the activations.
        n_latents: number of neurons; `expansion * d_in` when None.
        expansion: neurons per input dimension.
        input_norm: "z_score" and "layer_norm" normalise each row (see `src.ops.row_norm`) and undo it when decoding;
            "centre" subtracts the mean activation of the training rows and "global_scale" divides by their root mean
            square (SAELens' expected average norm, up to the mean of norms for the root of mean squares), both fixed
            before training by `fit_input_norm_`, undone when decoding and folded into exported weights.
        apply_b_dec_to_input: subtract b_dec before encoding (SAELens' name).
        use_b_enc: False leaves the encoder bias out, as sae-1n does.
        encoder_init: "tied" starts with W_enc equal to the decoder; "kaiming" scales it as sae-1n does, uniform with
            fan-in n_latents.
        atom_norm_init: length of the decoder rows at the start (dictionary_learning's ReLU SAE and SAELens: 0.1).
        b_dec_init: from the first batch its "mean" or "geometric_median" (over rows; of image blocks
            [n_images, n_tokens, d_in] the median block, averaged over tokens, as PatchSAE), or "zero".

    Raises:
        ValueError: when a size is not positive or an option is unknown or out of its range.
    """

    screening: bool = False
    """Whether pre-latents are looked for in bfloat16 and computed in float32: exact, see `src.ops.screening`."""
    candidate_threshold: Scalar | None = None
    """What the next training batch's candidates exceed, in families that follow it (BatchTopK). It decides how fast the
    selection is found and, with screening, how its values are rounded; never what it is."""

    _weights_of: WeightsOf = staticmethod(screening_weights)

    threshold: Float[Tensor, "*_"]
    input_mean: PerInput
    input_scale: PerInput

    def __init__(
        self,
        d_in: int,
        n_latents: int | None = None,
        expansion: float = 4,
        *,
        input_norm: InputNorm = "none",
        apply_b_dec_to_input: bool = True,
        use_b_enc: bool = True,
        encoder_init: EncoderInit = "tied",
        atom_norm_init: float = 1.0,
        b_dec_init: BDecInit = "mean",
    ) -> None:
        super().__init__()
        n_latents = round(expansion * d_in) if n_latents is None else n_latents
        if d_in < 1 or n_latents < 1:
            raise ValueError(
                f"Expected positive sizes, got d_in={d_in} and n_latents={n_latents}: give sae.n_latents, or a larger "
                "sae.expansion, which times d_in is the number of latents."
            )
        self.d_in, self.n_latents, self.expansion = d_in, n_latents, n_latents / d_in
        self.input_norm = one_of("input_norm", input_norm, InputNorm)
        self.apply_b_dec_to_input, self.use_b_enc = apply_b_dec_to_input, use_b_enc
        self.encoder_init = one_of("encoder_init", encoder_init, EncoderInit)
        self.atom_norm_init = at_least("atom_norm_init", atom_norm_init, 0)
        self.b_dec_init = one_of("b_dec_init", b_dec_init, BDecInit)

        W_dec = normalize_rows_(torch.randn(n_latents, d_in))
        if encoder_init == "kaiming":
            bound = math.sqrt(6 / n_latents)
            W_enc = torch.empty(n_latents, d_in).uniform_(-bound, bound)
            W_dec = normalize_rows_(W_enc.clone())
        else:
            W_enc = W_dec * atom_norm_init
        self.W_enc, self.W_dec = nn.Parameter(W_enc), nn.Parameter(W_dec * atom_norm_init)
        self.b_enc = nn.Parameter(torch.zeros(n_latents), requires_grad=use_b_enc)
        self.b_dec = nn.Parameter(torch.zeros(d_in))
        self.register_buffer("threshold", torch.zeros(()))
        self.register_buffer("input_mean", torch.zeros(d_in))
        self.register_buffer("input_scale", torch.ones(d_in))

    @classmethod
    def argument_names(cls) -> list[str]:
        """Returns the names of the constructor's arguments, those of the base classes included."""
        names = [
            name
            for owner in cls.__mro__
            if issubclass(owner, SAECore)
            for name, parameter in inspect.signature(owner.__init__).parameters.items()
            if name != "self" and parameter.kind is not inspect.Parameter.VAR_KEYWORD
        ]
        return list(dict.fromkeys(names))

    def init_arguments(self) -> dict[str, Any]:
        """Returns the constructor's arguments: each is kept as the attribute of its name, sizes as resolved."""
        return {name: getattr(self, name) for name in self.argument_names()}

    @property
    def atoms(self) -> Atoms:
        """The decoder's rows [n_latents, d_in]."""
        return self.W_dec

    @property
    def screens(self) -> bool:
        """Whether the next batch is screened."""
        return self.screening

    @property
    def inference_threshold(self) -> Scalar | PerNeuron:
        """What pre-latents must exceed at inference, 0-d or [n_latents]; never negative."""
        return self.threshold.clamp_min(0)

    @property
    def encoder_bias(self) -> PerNeuron | None:
        """The encoder bias, or None when the SAE has none."""
        return self.b_enc if self.use_b_enc else None

    @property
    def bias_through_input(self) -> Float[Tensor, " {self.d_in}"] | None:
        """b_dec where the encoder subtracts it, and so hands it a gradient."""
        return self.b_dec if self.apply_b_dec_to_input else None

    @property
    def saelens_architecture(self) -> str:
        """What SAELens calls an SAE that encodes as this one does at inference."""
        return "jumprelu"

    def saelens_settings(self) -> dict[str, Any]:
        """Returns what SAELens's cfg.json says of this architecture besides what it says of all."""
        return {}

    def saelens_parameters(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns the folded weights under SAELens's names with what this architecture adds: thresholds here."""
        return weights | {"threshold": self.inference_threshold.expand(self.n_latents)}

    def set_input_statistics(self, mean: Float[Tensor, " _"], scale: Float[Tensor, " _"]) -> None:
        """Fixes the standardisation `(x - mean) / scale` that encode applies and decode undoes, both [d_in].

        Raises:
            ValueError: when the shapes or a scale do not fit, or the inputs are normalised already.
        """
        for name, values in (("mean", mean), ("scale", scale)):
            if values.shape != (self.d_in,):
                raise ValueError(f"Expected an input {name} of shape ({self.d_in},), got {tuple(values.shape)}.")
        if not bool((scale > 0).all()):
            raise ValueError(f"Expected positive input scales, got a smallest of {float(scale.min())}.")
        if self.input_norm != "none":
            raise ValueError(
                f"Expected sae.input_norm=none with standardised activations, got {self.input_norm}: set "
                "dataset.standardize=false."
            )
        self.input_mean.copy_(mean)
        self.input_scale.copy_(scale)

    @torch.no_grad()
    def fit_input_norm_(self, batches: Iterable[Float[Tensor, "_ {self.d_in}"]]) -> None:
        """Fixes what "centre" and "global_scale" take from the activations, in one pass over batches [n, d_in].

        Raises:
            ValueError: when there are no rows, or all are zero.
        """
        n_rows, sums, squares = 0, torch.zeros(self.d_in, dtype=torch.float64), 0.0
        for batch in batches:
            exact = batch.double().cpu()
            n_rows, sums, squares = n_rows + len(exact), sums + exact.sum(0), squares + float(exact.square().sum())
        if not squares:
            raise ValueError(f"Expected activations to take sae.input_norm={self.input_norm} from, got {n_rows} rows.")
        if self.input_norm == "centre":
            self.input_mean.copy_(sums / n_rows)
        elif self.input_norm == "global_scale":
            self.input_scale.fill_(math.sqrt(squares / (n_rows * self.d_in)))

    @property
    def normalizes_rows(self) -> bool:
        """Whether each row is normalised by its own statistics, which decode then needs."""
        return self.input_norm in ("z_score", "layer_norm")

    def normalize(
        self, activations: Float[Tensor, "*rows d_in"]
    ) -> tuple[Float[Tensor, "n_rows d_in"], RowStatistics | None]:
        """Returns raw activations [n_rows, d_in] in the SAE's space, and what was taken from each row."""
        if activations.ndim != 2 or activations.shape[1] != self.d_in:
            raise ValueError(f"Expected activations [n_rows, {self.d_in}], got {tuple(activations.shape)}.")
        if self.normalizes_rows:
            return (z_score_rows if self.input_norm == "z_score" else layer_norm_rows)(activations)
        return self.standardize(activations), None

    def standardize(self, activations: Rows) -> Rows:
        """Returns `(activations - input_mean) / input_scale`: the units that errors are measured in.

        In raw units a few wide features would decide, and the constant ones, whose scale is 1 by convention.
        """
        # Most SAEs standardise nothing, and on the CPU the pass over the rows takes longer than this look.
        if not activations.is_cuda and bool((self.input_scale == 1).all() & (self.input_mean == 0).all()):
            return activations
        factor = self.input_scale.reciprocal()
        return torch.addcmul(-self.input_mean * factor, activations, factor)

    def centre(self, inputs: Rows) -> Rows:
        """Returns normalised inputs [n_rows, d_in] as the encoder takes them, without a gradient."""
        return inputs - self.b_dec.detach() if self.apply_b_dec_to_input else inputs

    def pre_latents(self, activations: Rows) -> PreLatents:
        """Returns all pre-latents, dense [n_rows, n_latents]."""
        inputs = self.normalize(activations)[0]
        centred = inputs - self.b_dec if self.apply_b_dec_to_input else inputs
        return nn.functional.linear(centred, self.W_enc, self.encoder_bias)

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Makes what screening needs of the encoder once for all batches inside; weights must not change there."""
        self._weights_of = remembered_weights()
        try:
            yield
        finally:
            self._weights_of = screening_weights

    @torch.no_grad()
    def encode(self, activations: Float[Tensor, "n_rows d_in"]) -> SparseLatents:
        """Returns the latents of inference for [n_rows, d_in], made in pieces of rows."""
        pieces = [self.encode_inputs(self.centre(self.normalize(rows)[0])) for rows in activations.split(_ENCODE_ROWS)]
        return SparseLatents.cat(pieces)

    def encode_inputs(self, centred: Rows) -> SparseLatents:
        """Returns the latents of inference for inputs [n_rows, d_in] as the encoder takes them, without a graph."""
        return self.product(centred).above(self.inference_threshold)

    def product(self, centred: Rows, column_ids: NeuronIds | None = None) -> EncoderProduct:
        """Returns the pre-latents of inputs [n_rows, d_in] as the encoder takes them, to be asked for.

        Args:
            centred: the inputs.
            column_ids: neurons whose pre-latents are needed whatever they are.
        """
        weights = (self.W_enc, self.encoder_bias)
        return EncoderProduct(
            centred, *weights, screens=self.screens, column_ids=column_ids, weights_of=self._weights_of
        )

    def decode(
        self, latents: Latents, row_statistics: RowStatistics | None = None
    ) -> Float[Tensor, "{latents.n_rows} {self.d_in}"]:
        """Returns reconstructions of raw activations [n_rows, d_in].

        Args:
            latents: what to decode.
            row_statistics: where rows are normalised, the statistics that `normalize` returned for them.

        Raises:
            ValueError: when the rows were normalised and their statistics are missing.
        """
        if self.normalizes_rows and row_statistics is None:
            raise ValueError(
                f"Expected row statistics to decode with input_norm={self.input_norm}, got none: use "
                "reconstruct(activations), or pass those that normalize(activations) returned."
            )
        reconstruction = decode(latents, self.atoms) + self.b_dec
        if row_statistics is not None:
            return reconstruction * row_statistics.scale + row_statistics.mean
        return torch.addcmul(self.input_mean, reconstruction, self.input_scale)

    def reconstruct(self, activations: Rows) -> Rows:
        """Returns what inference makes of raw activations [n_rows, d_in]."""
        row_statistics = self.normalize(activations)[1] if self.normalizes_rows else None
        return self.decode(self.encode(activations), row_statistics)

    forward = reconstruct

    @torch.no_grad()
    def initialize_from_(self, activations: Batch) -> None:
        """Sets what starts from data, from the first training batch [n_rows, d_in] or [n_images, n_tokens, d_in]."""
        if self.b_dec_init == "zero":
            return
        inputs = self.normalize(activations.reshape(-1, self.d_in))[0]
        if self.b_dec_init == "mean":
            self.b_dec.copy_(inputs.mean(0))
        else:
            self.b_dec.copy_(geometric_median(inputs.view(activations.shape)).reshape(-1, self.d_in).mean(0))
