"""What the families share that push for sparsity with a penalty: products as dense or as sparse as the latents are."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from src.models.saes.base import SAE
from src.ops.dense_latents import DenseLatents, Latents, encode_columns, encode_dense
from src.ops.processes import all_counts
from src.ops.sparse_products import copying_columns, encode_kept, entries_above, pre_latent_pieces

SPARSE_BELOW = 0.15
"""Share of listed entries below which sparse products are faster: see `experiments.benchmarks.density`."""


class Penalized(SAE):
    """An SAE whose number of latents a penalty decides; `density` follows it and decides how products are made.

    Early in training half of the latents may be above zero, and dense products are the faster ones; later a few per
    cent are, and sparse products are. `density` is the share in the last batch; it is part of the state, so a resumed
    training takes the same path.

    Args:
        *arguments: of `SAE`.
        **options: of `SAE`.
    """

    density: Float[Tensor, ""]

    def register_density(self) -> None:
        """Registers the state; called by a subclass's constructor."""
        self.register_buffer("density", torch.ones(()))

    def pre_latents_above(
        self,
        centred: Float[Tensor, "n_rows {self.d_in}"],
        floor: Float[Tensor, ""] | Float[Tensor, " {self.n_latents}"],
        columns: Int64[Tensor, " n_asked"] | None,
        *,
        mask_dense: bool = True,
    ) -> tuple[Latents, Float[Tensor, "n_rows n_asked"] | None]:
        """Encodes a batch with a graph.

        Args:
            centred: [n_rows, d_in], as `SAE.code` receives them.
            floor: 0-d or [n_latents]; only pre-latents above it are listed and receive a gradient.
            columns: neurons whose pre-latents are asked for, whatever they are.
            mask_dense: whether dense pre-latents are 0 where they are not above the floor; False leaves them as they
                are to a family that masks them itself.

        Returns:
            The pre-latents, and those of `columns` [n_rows, len(columns)].
        """
        weights = (self.W_enc, self.encoder_bias, self.bias_through_input)
        if self.density >= SPARSE_BELOW:
            dense = encode_dense(centred, *weights)
            listed = dense > floor
            self._follow(int(listed.sum()), listed.shape)
            asked = None if columns is None else dense.index_select(1, columns)
            return DenseLatents(dense * listed if mask_dense else dense), asked
        asked = None if columns is None else centred.new_empty(centred.shape[0], columns.numel())
        with torch.no_grad():
            pieces = pre_latent_pieces(centred, self.W_enc, self.encoder_bias)
            if columns is not None and asked is not None:
                pieces = copying_columns(pieces, columns, asked)
            kept = entries_above(pieces, floor, (centred.shape[0], self.n_latents))
        self._follow(kept.n_entries, kept.shape)
        if columns is not None and asked is not None:
            asked = encode_columns(asked, columns, centred, *weights)
        return encode_kept(kept, centred, *weights), asked

    def _follow(self, n_listed: int, shape: tuple[int, ...]) -> None:
        if self.training:
            n_listed, n_rows = all_counts(n_listed, shape[0], like=self.density)
            self.density.fill_(n_listed / max(n_rows * shape[1], 1))
