"""The pre-latents of a batch, made when they are asked for and only as far as they are."""

import torch

from src.ops.dense_products import matmul
from src.ops.screening import can_screen, screened_above, screened_largest_per_row
from src.ops.screening_bound import WeightsOf, screening_weights
from src.ops.selection import keep_largest_per_row
from src.ops.shapes import Atoms, Columns, NeuronIds, PerNeuron, Pieces, Rows, Scalar
from src.ops.sparse_latents import SparseLatents
from src.ops.sparse_products import copying_columns, entries_above, pre_latent_pieces


class EncoderProduct:
    """`inputs @ W_enc.T + b_enc` of a batch, without a graph.

    Args:
        inputs: [n_rows, d_in].
        W_enc: [n_latents, d_in].
        b_enc: [n_latents], or None for no bias.
        screens: whether entries are looked for in bfloat16 and computed in float32 (see `src.ops.screening`).
        column_ids: neurons whose pre-latents are needed whatever they are; see `columns`.
        weights_of: makes the encoder's side of the screening product.
    """

    def __init__(
        self,
        inputs: Rows,
        W_enc: Atoms,
        b_enc: PerNeuron | None,
        *,
        screens: bool = False,
        column_ids: NeuronIds | None = None,
        weights_of: WeightsOf = screening_weights,
    ) -> None:
        self._operands = (inputs.detach(), W_enc.detach(), None if b_enc is None else b_enc.detach())
        self._screens = screens and can_screen(inputs, W_enc)
        self._column_ids, self._columns, self._weights_of = column_ids, None, weights_of

    @property
    def shape(self) -> tuple[int, int]:
        """(n_rows, n_latents)."""
        inputs, W_enc, _ = self._operands
        return inputs.shape[0], W_enc.shape[0]

    def pieces(self) -> Pieces:
        """Returns all pre-latents in pieces of rows, to be read in order and to the end."""
        pieces = pre_latent_pieces(*self._operands)
        if self._column_ids is None:
            return pieces
        self._columns = self._operands[0].new_empty(self.shape[0], self._column_ids.numel())
        return copying_columns(pieces, self._column_ids, self._columns)

    @torch.no_grad()
    def above(self, threshold: Scalar | PerNeuron) -> SparseLatents:
        """Returns the entries strictly above a threshold, 0-d or [n_latents] for one per neuron."""
        if self._screens:
            return screened_above(*self._operands, threshold, self._weights_of)
        return entries_above(self.pieces(), threshold, self.shape)

    @torch.no_grad()
    def largest_per_row(self, k: int) -> SparseLatents:
        """Returns the `k` largest positive entries of each row; see `keep_largest_per_row`."""
        if self._screens:
            return screened_largest_per_row(*self._operands, k, self._weights_of)
        return keep_largest_per_row(self.pieces(), k)

    @torch.no_grad()
    def columns(self) -> Columns | None:
        """Returns the pre-latents of the neurons asked for [n_rows, n_asked]; None when none were."""
        if self._column_ids is None or self._columns is not None:
            return self._columns
        inputs, W_enc, b_enc = self._operands
        return matmul(inputs, W_enc[self._column_ids].T, None if b_enc is None else b_enc[self._column_ids])
