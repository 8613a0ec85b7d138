"""Products of sparse latents with dense matrices, and their gradients, without a dense [n_rows, n_latents] tensor.

On CUDA they are Triton kernels. Elsewhere sums of rows are `embedding_bag` sums: torch's CPU kernel for it is several
times faster here than its MKL sparse-CSR product, and takes one thread per output row, so the order of a sum is fixed.
Dot products of single pairs are torch's product sampled at the entries of a CSR tensor.
"""

import warnings
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from src.ops import triton_encode, triton_products
from src.ops.dense_products import matmul
from src.ops.shapes import Atoms, Columns, NeuronIds, PerInput, PerNeuron, Pieces, Rows, Scalar
from src.ops.sparse_latents import SparseLatents

# Pre-latents are made in pieces of about this many elements. On the CPU (8 MiB) they stay in cache while they are
# compared; elsewhere (2 GiB) a piece only bounds the memory.
_PIECE_ELEMENTS = (2**21, 2**29)
_LEAST_PIECE_ROWS = 256
# From there on sorting the pairs by the rows of the larger matrix pays (768 -> 12288, batches of 2048 rows).
_MUCH_LARGER = 4


def pre_latent_pieces(inputs: Rows, W_enc: Atoms, b_enc: PerNeuron | None) -> Iterator[Float[Tensor, "_ n_latents"]]:
    """Yields `inputs @ W_enc.T + b_enc` in pieces of consecutive rows [n_piece_rows, n_latents].

    Args:
        inputs: [n_rows, d_in].
        W_enc: [n_latents, d_in].
        b_enc: [n_latents], or None for no bias.
    """
    piece_rows = max(_LEAST_PIECE_ROWS, _PIECE_ELEMENTS[inputs.device.type != "cpu"] // W_enc.shape[0])
    for rows in inputs.split(piece_rows):
        yield matmul(rows, W_enc.T, b_enc).to(inputs.dtype)


def copying_columns(pieces: Pieces, neuron_ids: NeuronIds, columns: Columns) -> Iterator[Float[Tensor, "_ n_latents"]]:
    """Passes pieces of pre-latents on and copies some neurons' into `columns` [n_rows, len(neuron_ids)]."""
    start = 0
    for piece in pieces:
        columns[start : start + piece.shape[0]] = piece.index_select(1, neuron_ids)
        start += piece.shape[0]
        yield piece


def entries_above(pieces: Pieces, threshold: Float[Tensor, "*_"], shape: tuple[int, int]) -> SparseLatents:
    """Returns the entries of pre-latents, given in pieces of rows, that are strictly above a threshold.

    Args:
        pieces: of `pre_latent_pieces`.
        threshold: 0-d, or [n_latents] for one threshold per neuron.
        shape: (n_rows, n_latents) of all pieces together.
    """
    if triton_products.is_available(threshold):
        return SparseLatents.cat([triton_encode.entries_above(piece, threshold) for piece in pieces])
    flat_ids = [torch.empty(0, dtype=torch.int64, device=threshold.device)]
    values = [threshold.new_empty(0)]
    start = 0
    for pre_latents in pieces:
        ids = (pre_latents > threshold).view(-1).nonzero().squeeze(1)
        values.append(pre_latents.reshape(-1)[ids])
        flat_ids.append(ids + start)
        start += pre_latents.numel()
    return SparseLatents.from_flat_ids(torch.cat(flat_ids), torch.cat(values), shape)


@torch.no_grad()
def pre_latents_above(
    inputs: Rows, W_enc: Atoms, b_enc: PerNeuron | None, threshold: Scalar | PerNeuron
) -> SparseLatents:
    """Returns the entries of `inputs @ W_enc.T + b_enc` that are strictly above a threshold; see `entries_above`."""
    pieces = pre_latent_pieces(inputs, W_enc, b_enc)
    return entries_above(pieces, threshold, (inputs.shape[0], W_enc.shape[0]))


def encode_kept(
    kept: SparseLatents, inputs: Rows, W_enc: Atoms, b_enc: PerNeuron | None, b_dec: PerInput | None
) -> SparseLatents:
    """Gives kept pre-latents a gradient: the dense encoder's, restricted to the kept entries.

    The values are entries of `(x - b_dec) @ W_enc.T + b_enc`. With G the sparse gradient of the values, W_enc
    receives `G.T @ inputs`, b_enc the column sums g of G, and b_dec `-g @ W_enc`.

    Args:
        kept: the entries to keep, with their values.
        inputs: [n_rows, d_in], `x - b_dec`.
        W_enc: [n_latents, d_in].
        b_enc: [n_latents], or None.
        b_dec: [d_in] to receive the gradient that flows through the subtraction, or None when `inputs` carries it.
    """
    values = _KeptEncoding.apply(kept.values.detach(), inputs, W_enc, b_enc, b_dec, kept.detach())
    return kept.with_values(values)


def decode_sparse(
    latents: SparseLatents, W_dec: Float[Tensor, "{latents.n_latents} d_in"]
) -> Float[Tensor, "{latents.n_rows} d_in"]:
    """Returns `latents @ W_dec` [n_rows, d_in], differentiable in the values and in W_dec [n_latents, d_in]."""
    return _SparseDecoding.apply(latents.values, W_dec, latents.detach())  # pyright: ignore[reportReturnType]


def transposed_product(
    latents: SparseLatents, rows: Float[Tensor, "{latents.n_rows} d"]
) -> Float[Tensor, "{latents.n_latents} d"]:
    """Returns `latents.T @ rows` [n_latents, d] for rows [n_rows, d]."""
    if triton_products.is_available(rows):
        return triton_products.transposed_product(latents, rows)
    order = latents.neuron_order
    return _bag_sums(rows, order.row_ids, order.neuron_offsets, latents.values.index_select(0, order.entries))


def kept_dot_products(
    pattern: SparseLatents, rows: Float[Tensor, "{pattern.n_rows} d"], atoms: Float[Tensor, "{pattern.n_latents} d"]
) -> Float[Tensor, " {pattern.n_entries}"]:
    """Returns `rows[i] @ atoms[j]` [n_entries] for every entry (i, j) of a pattern."""
    if triton_products.is_available(rows):
        return triton_products.kept_dot_products(pattern, rows, atoms).to(pattern.values.dtype)
    # Both ways give the same bits. The one that goes through the larger matrix once, in order, is the faster.
    if atoms.numel() <= _MUCH_LARGER * rows.numel():
        return _dot_products(rows, atoms, pattern.row_offsets, pattern.neuron_ids)
    offsets, row_ids, entries = pattern.neuron_order
    products = _dot_products(atoms, rows, offsets, row_ids)
    return torch.empty_like(products).index_copy_(0, entries, products)


def _dot_products(left: Tensor, right: Tensor, offsets: Tensor, ids: Tensor) -> Tensor:
    """Returns `left[i] @ right[j]` for the entries (i, j) of a pattern in CSR form; sums are at least float32."""
    _warn_of_csr_once()
    wide = torch.promote_types(left.dtype, torch.float32)
    zeros = torch.zeros(len(ids), dtype=wide, device=left.device)
    shape = (len(left), len(right))
    pattern = torch.sparse_csr_tensor(offsets.to(ids.dtype), ids, zeros, shape, check_invariants=False)
    return torch.sparse.sampled_addmm(pattern, left.to(wide), right.to(wide).T, beta=0).values().to(left.dtype)


@cache
def _warn_of_csr_once() -> None:
    """Lets torch say unheard what it says once a process: that CSR tensors, of which one product is used, are beta."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor(torch.tensor([0, 1]), torch.tensor([0]), torch.ones(1), (1, 1))


def _bag_sums(table: Tensor, ids: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    return F.embedding_bag(ids, table, offsets, mode="sum", per_sample_weights=weights, include_last_offset=True)


class _SparseDecoding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, W_dec: Tensor, pattern: SparseLatents) -> Tensor:
        ctx.save_for_backward(values, W_dec)
        ctx.pattern = pattern
        if triton_products.is_available(W_dec):
            return triton_products.decode_rows(pattern.with_values(values), W_dec)
        return _bag_sums(W_dec, pattern.neuron_ids, pattern.row_offsets, values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        values, W_dec = ctx.saved_tensors
        gradient = gradient.contiguous()
        to_values = kept_dot_products(ctx.pattern, gradient, W_dec) if ctx.needs_input_grad[0] else None
        to_weights = None
        if ctx.needs_input_grad[1]:
            to_weights = transposed_product(ctx.pattern.with_values(values), gradient)
        return to_values, to_weights, None


class _KeptEncoding(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        inputs: Tensor,
        W_enc: Tensor,
        b_enc: Tensor | None,  # noqa: ARG004 - a place for its gradient
        b_dec: Tensor | None,  # noqa: ARG004 - a place for its gradient
        pattern: SparseLatents,
    ) -> Tensor:
        ctx.save_for_backward(inputs, W_enc)
        ctx.pattern = pattern
        return values.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs, W_enc = ctx.saved_tensors
        _, to_inputs, to_weights, to_encoder_bias, to_decoder_bias, _ = ctx.needs_input_grad
        latents = ctx.pattern.with_values(gradient)
        sums = None
        if to_encoder_bias or to_decoder_bias:
            sums = gradient.new_zeros(latents.n_latents).index_add_(0, latents.neuron_ids, gradient)
        return (
            None,
            decode_sparse(latents, W_enc) if to_inputs else None,
            transposed_product(latents, inputs) if to_weights else None,
            sums if to_encoder_bias else None,
            -(sums @ W_enc) if to_decoder_bias and sums is not None else None,
            None,
        )
