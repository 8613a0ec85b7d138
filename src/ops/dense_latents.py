"""Latents of which so many are not zero that dense products are the faster ones."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from src.ops.dense_products import matmul
from src.ops.shapes import Atoms, Columns, NeuronIds, PerInput, PerNeuron, PreLatents, Rows
from src.ops.sparse_latents import SparseLatents
from src.ops.sparse_products import decode_sparse


@dataclass(frozen=True, eq=False)
class DenseLatents:
    """Dense latents with the part of `SparseLatents` that a training step needs.

    Attributes:
        values: [n_rows, n_latents]; may carry a gradient.
    """

    values: PreLatents

    @property
    def shape(self) -> tuple[int, int]:
        """(n_rows, n_latents)."""
        return (self.values.shape[0], self.values.shape[1])

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return self.values.shape[0]

    @property
    def n_latents(self) -> int:
        """Number of neurons."""
        return self.values.shape[1]

    def with_values(self, values: Float[Tensor, "{self.n_rows} {self.n_latents}"]) -> "DenseLatents":
        """Returns latents with other values [n_rows, n_latents]."""
        return DenseLatents(values)

    def detach(self) -> "DenseLatents":
        """Returns the same latents without a gradient."""
        return DenseLatents(self.values.detach())

    def per_neuron(self, vector: Float[Tensor, " {self.n_latents}"]) -> Float[Tensor, " {self.n_latents}"]:
        """Returns a value per neuron [n_latents] in a shape that meets `values`."""
        return vector

    def to_dense(self) -> Float[Tensor, "{self.n_rows} {self.n_latents}"]:
        """Returns the values."""
        return self.values


Latents = SparseLatents | DenseLatents
"""Both hold the values above zero; families write their formulas once, over `values` and `per_neuron`."""


def decode(
    latents: Latents, W_dec: Float[Tensor, "{latents.n_latents} d_in"]
) -> Float[Tensor, "{latents.n_rows} d_in"]:
    """Returns `latents @ W_dec` [n_rows, d_in], differentiable in the values and in W_dec [n_latents, d_in]."""
    return matmul(latents.values, W_dec) if isinstance(latents, DenseLatents) else decode_sparse(latents, W_dec)


def encode_dense(inputs: Rows, W_enc: Atoms, b_enc: PerNeuron | None, b_dec: PerInput | None) -> PreLatents:
    """Returns `inputs @ W_enc.T + b_enc` [n_rows, n_latents] for inputs `x - b_dec` that carry no gradient.

    b_dec receives its gradient from column sums, as in `encode_kept`: one product with a vector, where the gradient of
    the inputs would need one with a matrix.

    Args:
        inputs: [n_rows, d_in].
        W_enc: [n_latents, d_in].
        b_enc: [n_latents], or None.
        b_dec: [d_in] to receive the gradient that flows through the subtraction, or None.
    """
    return _DenseEncoding.apply(inputs, W_enc, b_enc, b_dec)  # pyright: ignore[reportReturnType]


def encode_columns(
    columns: Columns, neuron_ids: NeuronIds, inputs: Rows, W_enc: Atoms, b_enc: PerNeuron | None, b_dec: PerInput | None
) -> Columns:
    """Gives some neurons' pre-latents, known already, the gradient of the encoder.

    W_enc's gradient holds the rows of these neurons only (a sparse tensor, which autograd adds to dense ones).

    Args:
        columns: [n_rows, n_asked], their values.
        neuron_ids: [n_asked] int64, distinct.
        inputs: [n_rows, d_in], `x - b_dec`, without a gradient.
        W_enc: [n_latents, d_in].
        b_enc: [n_latents], or None.
        b_dec: [d_in] or None, as in `encode_dense`.
    """
    return _ColumnEncoding.apply(columns, neuron_ids, inputs, W_enc, b_enc, b_dec)  # pyright: ignore[reportReturnType]


class _DenseEncoding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, W_enc: Tensor, b_enc: Tensor | None, b_dec: Tensor | None) -> Tensor:  # noqa: ARG004
        ctx.save_for_backward(inputs, W_enc)
        return matmul(inputs, W_enc.T, b_enc)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs, W_enc = ctx.saved_tensors
        _, to_weights, to_encoder_bias, to_decoder_bias = ctx.needs_input_grad
        sums = gradient.sum(0) if to_encoder_bias or to_decoder_bias else None
        return (
            None,
            matmul(gradient.T, inputs) if to_weights else None,
            sums if to_encoder_bias else None,
            -(sums @ W_enc) if to_decoder_bias and sums is not None else None,
        )


class _ColumnEncoding(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        columns: Tensor,
        neuron_ids: Tensor,
        inputs: Tensor,
        W_enc: Tensor,
        b_enc: Tensor | None,  # noqa: ARG004 - a place for its gradient
        b_dec: Tensor | None,  # noqa: ARG004 - a place for its gradient
    ) -> Tensor:
        ctx.save_for_backward(neuron_ids, inputs, W_enc)
        return columns.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        neuron_ids, inputs, W_enc = ctx.saved_tensors
        _, _, _, to_weights, to_encoder_bias, to_decoder_bias = ctx.needs_input_grad
        sums = gradient.sum(0)
        weights, biases = None, None
        if to_weights:
            # A sparse gradient: autograd adds its rows to the main encoder's gradient, which is dense.
            weights = torch.sparse_coo_tensor(
                neuron_ids.unsqueeze(0), matmul(gradient.T, inputs), W_enc.shape, check_invariants=False
            )
        if to_encoder_bias:
            biases = sums.new_zeros(W_enc.shape[0]).index_copy_(0, neuron_ids, sums)
        to_b_dec = -(sums @ W_enc[neuron_ids]) if to_decoder_bias else None
        return None, None, None, weights, biases, to_b_dec
