"""Gated SAE: one set of encoder weights, one path that says which latents fire and one that says how strongly."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.models.saes.options import at_least
from src.models.saes.penalized import Penalized
from src.models.saes.shapes import PreLatents, Rows
from src.models.saes.step import Code, Losses, TrainingProgress
from src.ops.dense_latents import Latents, decode
from src.ops.losses import mean_l1
from src.ops.shapes import NeuronIds
from src.ops.sparse_latents import SparseLatents


class Gated(Penalized):
    """Gated SAE (Rajamanoharan et al. 2024, arXiv 2404.16014).

    With h = (x - b_dec) W_enc.T, a neuron fires where its gate h + b_enc is above zero, with the magnitude
    ReLU(exp(r_mag) h + b_mag). The L1 penalty falls on the gates alone and so does not shrink magnitudes; a
    reconstruction from the gates, with a decoder held constant, keeps them meaningful.

    Args:
        d_in: dimension of the activations.
        n_latents: number of neurons; `expansion * d_in` when None.
        expansion: neurons per input dimension.
        l1_coefficient: weight of the mean over rows of the sum of positive gates.
        **options: of `SAE`; `use_b_enc` is that of the gates' bias.
    """

    def __init__(
        self,
        d_in: int,
        n_latents: int | None = None,
        expansion: float = 4,
        *,
        l1_coefficient: float = 1e-3,
        **options: Any,
    ) -> None:
        super().__init__(d_in, n_latents, expansion, **options)
        self.l1_coefficient = at_least("l1_coefficient", l1_coefficient, 0)
        self.r_mag = nn.Parameter(torch.zeros(self.n_latents))
        self.b_mag = nn.Parameter(torch.zeros(self.n_latents))

    @property
    def encoder_bias(self) -> None:
        """None: both paths share the product with W_enc and add their own bias to it, b_enc for the gates."""
        return None

    @property
    def saelens_architecture(self) -> str:
        """SAELens's "gated"."""
        return "gated"

    def saelens_parameters(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns the folded weights with both biases under SAELens's names; see `SAECore.saelens_parameters`."""
        weights = dict(weights)
        b_gate = weights.pop("b_enc")
        shift = b_gate - self.b_enc  # what folding adds to h: SAELens's is of inputs that are not standardised
        b_mag = self.b_mag + self.r_mag.exp() * shift
        return weights | {"b_gate": b_gate, "b_mag": b_mag, "r_mag": self.r_mag}

    def pre_latents(self, activations: Rows) -> PreLatents:
        """Returns all gates before their step, dense [n_rows, n_latents]: a neuron may fire where its is positive."""
        return super().pre_latents(activations) + self.b_enc

    def code(self, centred: Rows, progress: TrainingProgress, columns: NeuronIds | None) -> Code:
        """Lists positive gates, in training as at inference; see `SAE.code`."""
        products, asked = self.pre_latents_above(centred, -self.b_enc.detach(), columns)
        gates = products.with_values(F.relu(products.values + products.per_neuron(self.b_enc)))
        if asked is not None and columns is not None:
            asked = asked + self.b_enc[columns]
        return Code(gates, gates.with_values(self._magnitudes(products) * (gates.values > 0)), asked)

    def encode_inputs(self, centred: Rows) -> SparseLatents:
        """Returns the latents of inference for inputs [n_rows, d_in] as the encoder takes them, without a graph."""
        products = self.product(centred).above(-self.b_enc)
        magnitudes = self._magnitudes(products)
        return products.with_values(magnitudes).where(magnitudes > 0)

    def penalties(self, code: Code, inputs: Rows, reconstruction: Rows, progress: TrainingProgress) -> Losses:
        """Returns the L1 term of the gates and the error of what they reconstruct; see `SAE.penalties`."""
        from_gates = decode(code.pre_latents, self.atoms.detach()) + self.b_dec.detach()
        return {
            "l1": self.l1_coefficient * self.sparsity_scale(progress) * mean_l1(code.pre_latents),
            "gate_mse": self.error(from_gates, inputs),
        }

    def _magnitudes(self, products: Latents) -> Tensor:
        """Returns what the magnitude path makes of listed products, in the shape of their values."""
        scale, bias = products.per_neuron(self.r_mag.exp()), products.per_neuron(self.b_mag)
        return F.relu(products.values * scale + bias)
