"""Archetypal SAE: every atom is a mixture of real activations, and may leave their hull by no more than stated."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from src.models.saes.batch_topk import BatchTopK
from src.models.saes.options import at_least
from src.models.saes.shapes import Atoms, Batch
from src.models.saes.step import SAEStep, TrainingProgress
from src.ops.dense_latents import decode
from src.ops.dense_products import matmul
from src.ops.selection import keep_largest
from src.ops.sparse_products import pre_latents_above

# Overcomplete's guard of a row that sums to 0.
_EPS = 1e-8


class Archetypal(BatchTopK):
    """RA-SAE (Fel et al. 2025, "Archetypal SAE", arXiv 2502.12892), with BatchTopK as its sparsifier.

    Atoms are `mixing @ points + offsets`: rows of `mixing` are not negative and sum to 1, so their part lies in the
    convex hull of the points (k-means centres of the activations), and an offset is no longer than `relaxation`. The
    same data then gives nearly the same atoms under every seed, which free dictionaries do not.

    It differs from overcomplete's in three ways. Each point is scaled to length 1: an optimizer's step would dwarf the
    encoder's rows where activations are long, and latents scale atoms anyway. `relaxation` then means the same for
    every backbone, and no learned common factor is needed. Neurons beyond the number of points start as the middle of
    two points, where overcomplete's start at zero.

    Args:
        d_in: dimension of the activations.
        n_latents: number of neurons; `expansion * d_in` when None.
        expansion: neurons per input dimension.
        k: latents kept per row, on average over the batch.
        n_points: number of points; n_latents when None.
        relaxation: the largest length of an offset; points have length 1.
        **options: of `KSparse`; b_dec stays zero and atoms have no norm constraint.

    Raises:
        ValueError: when an option is out of its range or another option asks for a norm or a bias.
    """

    points: Float[Tensor, "n_points d_in"]

    def __init__(
        self,
        d_in: int,
        n_latents: int | None = None,
        expansion: float = 4,
        k: int = 16,
        *,
        n_points: int | None = None,
        relaxation: float = 0.1,
        **options: Any,
    ) -> None:
        options = {"decoder_constraint": "none", "b_dec_init": "zero", **options}
        super().__init__(d_in, n_latents, expansion, k, **options)
        if self.decoder_constraint != "none" or self.b_dec_init != "zero":
            raise ValueError(
                "Expected sae.decoder_constraint=none and sae.b_dec_init=zero with archetypal atoms, got "
                f"{self.decoder_constraint} and {self.b_dec_init}."
            )
        self.n_points = at_least("n_points", self.n_latents if n_points is None else n_points, 1)
        self.relaxation = at_least("relaxation", relaxation, 0)
        del self.W_dec
        self.b_dec.requires_grad_(False)
        self.register_buffer("points", torch.zeros(self.n_points, d_in))
        self.mixing = nn.Parameter(self._first_mixing())
        self.offsets = nn.Parameter(torch.zeros(self.n_latents, d_in))
        self._atoms_of_step: Tensor | None = None

    @property
    def atoms(self) -> Atoms:
        """The decoder's rows [n_latents, d_in], made from points; once per training step."""
        return self._mix() if self._atoms_of_step is None else self._atoms_of_step

    @torch.no_grad()
    def set_points(self, points: Float[Tensor, "n_points d_in"]) -> None:
        """Sets the points from raw activations [n_points, d_in] and starts the encoder from the atoms they give.

        An encoder row is the atom over its squared length: an input equal to the atom gives 1. `initialize_from_`
        scales them.

        Raises:
            ValueError: when the shape is another, or all points are zero.
        """
        if points.shape != self.points.shape:
            raise ValueError(
                f"Expected {self.n_points} points of {self.d_in} dimensions, got shape {tuple(points.shape)}: set "
                "sae.n_points to the number of points."
            )
        self.points.copy_(F.normalize(self.normalize(points)[0], dim=1))
        if not bool(self.points.any()):
            raise ValueError("Expected points that are not all zero, got only zeros.")
        atoms = self._mix()
        self.W_enc.copy_(atoms / atoms.square().sum(1, keepdim=True).clamp_min(_EPS))

    @torch.no_grad()
    def initialize_from_(self, activations: Batch) -> None:
        """Scales the encoder so that its first reconstructions of a batch are the best that a common factor gives.

        The k atoms that an input keeps overlap: each as long as its own projection, their sum would be several times
        too long.
        Random rows of the batch become the points when `set_points` was not called.
        """
        rows = activations.reshape(-1, self.d_in)
        if not bool(self.points.any()):
            if len(rows) < self.n_points:
                raise ValueError(
                    f"Expected a first batch of at least sae.n_points={self.n_points} rows to take points from, got "
                    f"{len(rows)}: set sae.n_points lower or train.batch_size higher."
                )
            self.set_points(rows[torch.randperm(len(rows))[: self.n_points].to(rows.device)])
        inputs, _ = self.normalize(rows)
        kept = keep_largest(
            pre_latents_above(inputs, self.W_enc, self.encoder_bias, torch.zeros_like(self.threshold)),
            self.k * len(inputs),
        )
        reconstruction = decode(kept, self.atoms)
        factor = (inputs * reconstruction).sum() / reconstruction.square().sum().clamp_min(_EPS)
        if factor > 0:
            self.W_enc.mul_(factor)

    def step(
        self,
        activations: Float[Tensor, "*rows d_in"],
        progress: TrainingProgress = TrainingProgress(),  # noqa: B008
    ) -> SAEStep:
        """Runs a batch with atoms that are mixed once; see `SAE.step`."""
        self._atoms_of_step = self._mix()
        try:
            return super().step(activations, progress)
        finally:
            self._atoms_of_step = None

    @torch.no_grad()
    def constrain_after_step_(self) -> None:
        """Projects mixtures back onto the simplex (as overcomplete: ReLU, then sum 1) and shortens offsets."""
        self.mixing.clamp_min_(0)
        self.mixing /= self.mixing.sum(1, keepdim=True) + _EPS
        norms = torch.linalg.vector_norm(self.offsets, dim=1, keepdim=True)
        self.offsets *= (self.relaxation / norms.clamp_min(_EPS)).clamp_max(1.0)

    def _mix(self) -> Tensor:
        # Atoms have the parameters' type also under autocast, which rounds the product alone.
        return self.offsets + matmul(self.mixing, self.points)

    def _first_mixing(self) -> Tensor:
        """Each neuron its own point as long as there are points, then the middle of two."""
        mixing = torch.eye(self.n_latents, self.n_points)
        for neuron_id in range(self.n_points, self.n_latents):
            mixing[neuron_id, torch.randperm(self.n_points)[:2]] = 0.5
        return mixing / mixing.sum(1, keepdim=True)
