"""What the families share that push for sparsity with a penalty: products as dense or as sparse as the latents are."""

from typing import Any

import torch

from src.models.saes.base import SAE
from src.models.saes.shapes import PerNeuron, Rows
from src.ops.dense_latents import DenseLatents, Latents, encode_dense
from src.ops.processes import all_counts
from src.ops.screening import SCREEN_BELOW
from src.ops.shapes import Columns, NeuronIds, Scalar

SPARSE_BELOW = 0.15
"""Share of listed entries below which sparse products are faster: see `experiments.benchmarks.density`."""


class Penalized(SAE):
    """An SAE whose number of latents a penalty decides; `density` follows it and decides how products are made.

    Early in training half of the latents may be above zero, and dense products are the faster ones; later a few per
    cent are, and sparse products are. `density` is the share in the last batch; it is part of the state, so a resumed
    training takes the same path.

    Args:
        d_in: dimension of the activations.
        n_latents: number of neurons; `expansion * d_in` when None.
        expansion: neurons per input dimension.
        **options: of `SAE`.
    """

    density: Scalar

    def __init__(self, d_in: int, n_latents: int | None = None, expansion: float = 4, **options: Any) -> None:
        super().__init__(d_in, n_latents, expansion, **options)
        self.register_buffer("density", torch.ones(()))

    def pre_latents_above(
        self, centred: Rows, floor: Scalar | PerNeuron, columns: NeuronIds | None
    ) -> tuple[Latents, Columns | None]:
        """Encodes a batch with a graph.

        Args:
            centred: [n_rows, d_in], as `SAE.code` receives them.
            floor: 0-d or [n_latents]; sparse pre-latents are those above it. Dense ones are all there, for the family
                to mask.
            columns: neurons whose pre-latents are asked for, whatever they are.

        Returns:
            The pre-latents, and those of `columns` [n_rows, len(columns)].
        """
        if self.density >= SPARSE_BELOW:
            dense = encode_dense(centred, self.W_enc, self.encoder_bias, self.bias_through_input)
            self._follow(int(torch.count_nonzero(dense > floor)), dense.shape)
            asked = None if columns is None else dense.index_select(1, columns)
            return DenseLatents(dense), asked
        latents, asked = self.encode_selected(centred, columns, lambda product: product.above(floor))
        self._follow(latents.n_entries, latents.shape)
        return latents, asked

    @property
    def screens(self) -> bool:
        """Screening pays where few pre-latents are listed."""
        return self.screening and float(self.density) < SCREEN_BELOW

    def _follow(self, n_listed: int, shape: tuple[int, ...]) -> None:
        if self.training:
            n_listed, n_rows = all_counts(n_listed, shape[0], like=self.density)
            self.density.fill_(n_listed / max(n_rows * shape[1], 1))
