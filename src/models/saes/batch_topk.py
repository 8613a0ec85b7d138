"""BatchTopK: keeps the largest k pre-latents per row on average, chosen over the whole batch."""

from typing import Unpack

import torch
from torch import Tensor

from src.models.saes.base import SAE, SAEOptions, SAEStep
from src.ops.losses import auxk_loss, mean_l1, mean_squared_error
from src.ops.selection import keep_largest
from src.ops.sparse_latents import SparseLatents
from src.ops.sparse_products import decode_sparse, encode_kept, pre_latents_above

# The next batch's candidates are the pre-latents above this share of the last smallest kept one. Higher finds fewer
# candidates but misses more often (0.9: never in 400 batches of 64 rows, 0.98: every fourth); a miss costs a second
# encoder product and changes no result.
_CANDIDATE_SHARE = 0.9


class BatchTopK(SAE):
    """BatchTopK SAE (Bussmann, Leask and Nanda 2024, arXiv 2412.06410).

    Training keeps the `k * n_rows` largest ReLU'd pre-latents of the batch, exactly; a short batch keeps k times its
    rows. Inference keeps what exceeds `threshold`, an exponential moving average of the smallest kept value, which
    is what makes a row's latents independent of its batch.

    The defaults differ from the authors' code and from sae-1n, which copies it: the encoder bias is used, the AuxK
    residual is detached (else the main reconstruction learns to leave the auxiliary one an easy target), atoms are
    unit-norm after the step and not before it, the threshold starts at its first observation instead of at 0, and
    validation moves nothing. `conf/sae/batch_topk_sae1n.yaml` switches all of that back.

    Args:
        d_in: dimension of the activations.
        n_latents: number of neurons; `expansion * d_in` when None.
        expansion: neurons per input dimension.
        k: latents kept per row, on average.
        k_aux: most dead latents that AuxK keeps per row; `d_in // 2` when None (Gao et al. 2024).
        aux_coefficient: weight of AuxK; 0 switches it off.
        dead_after_batches: a neuron is dead when it was silent in this many training batches in a row.
        detach_residual: whether AuxK's target is a constant.
        l1_coefficient: weight of the mean L1 norm of the latents.
        threshold_decay: share of the old threshold in the moving average.
        threshold_from_zero: start the average at 0, as sae-1n does, instead of at the first smallest kept value.
        **options: of `SAE`.

    Raises:
        ValueError: when k is not within 1 and n_latents, or another option is out of its range.
    """

    batches_since_fired: Tensor

    def __init__(
        self,
        d_in: int,
        n_latents: int | None = None,
        expansion: float = 4,
        k: int = 16,
        *,
        k_aux: int | None = None,
        aux_coefficient: float = 1 / 32,
        dead_after_batches: int = 5,
        detach_residual: bool = True,
        l1_coefficient: float = 0.0,
        threshold_decay: float = 0.99,
        threshold_from_zero: bool = False,
        **options: Unpack[SAEOptions],
    ) -> None:
        super().__init__(d_in, n_latents, expansion, **options)
        if not 1 <= k <= self.n_latents:
            raise ValueError(f"Expected sae.k within 1 and n_latents={self.n_latents}, got {k}.")
        k_aux = max(d_in // 2, 1) if k_aux is None else k_aux
        for option, value, least in (
            ("k_aux", k_aux, 1),
            ("dead_after_batches", dead_after_batches, 1),
            ("aux_coefficient", aux_coefficient, 0),
            ("l1_coefficient", l1_coefficient, 0),
        ):
            if value < least:
                raise ValueError(f"Expected sae.{option} of at least {least}, got {value}.")
        if not 0 <= threshold_decay <= 1:
            raise ValueError(f"Expected sae.threshold_decay within 0 and 1, got {threshold_decay}.")
        self.k, self.k_aux = k, k_aux
        self.aux_coefficient, self.l1_coefficient = aux_coefficient, l1_coefficient
        self.dead_after_batches, self.detach_residual = dead_after_batches, detach_residual
        self.threshold_decay, self.threshold_from_zero = threshold_decay, threshold_from_zero
        self.register_buffer("batches_since_fired", torch.zeros(self.n_latents, dtype=torch.int64))
        # Not a buffer: it decides how fast the selection is found, never what it is.
        self._candidate_threshold: Tensor | None = None

    def step(self, activations: Tensor) -> SAEStep:
        """Runs a batch; see `SAE.step`. Losses: mse, and l1 and aux where they apply."""
        inputs, _ = self.normalize(activations)
        centred = inputs - self.b_dec.detach()
        kept = self._select(centred) if self.training else self._above_threshold(centred)
        latents = encode_kept(kept, centred, self.W_enc, self.encoder_bias, self.b_dec)
        reconstruction = decode_sparse(latents, self.W_dec) + self.b_dec
        if self.training or self.observe_validation:
            self.observe_(kept)

        losses = {"mse": mean_squared_error(reconstruction, inputs)}
        if self.l1_coefficient:
            losses["l1"] = self.l1_coefficient * mean_l1(latents)
        dead = (self.batches_since_fired >= self.dead_after_batches).nonzero().squeeze(1)
        if self.aux_coefficient and dead.numel():
            losses["aux"] = self.aux_coefficient * self._auxk(inputs, reconstruction, dead)
        return SAEStep(latents, reconstruction, losses, self._metrics(kept, dead))

    @torch.no_grad()
    def observe_(self, latents: SparseLatents) -> None:
        """Moves the threshold and the dead counters by one batch of kept (positive) latents."""
        if latents.n_entries:
            smallest = latents.values.min()
            average = self.threshold_decay * self.threshold + (1 - self.threshold_decay) * smallest
            is_first = (self.threshold == 0) & (not self.threshold_from_zero)
            self.threshold.copy_(torch.where(is_first, smallest, average))
        self.batches_since_fired.add_(1).index_fill_(0, latents.neuron_ids, 0)

    def _above_threshold(self, centred: Tensor) -> SparseLatents:
        return pre_latents_above(centred, self.W_enc, self.encoder_bias, self.threshold.clamp_min(0))

    @torch.no_grad()
    def _select(self, centred: Tensor) -> SparseLatents:
        n_kept = self.k * centred.shape[0]
        zero = torch.zeros_like(self.threshold)
        guess = zero if self._candidate_threshold is None else self._candidate_threshold
        candidates = pre_latents_above(centred, self.W_enc, self.encoder_bias, guess)
        if candidates.n_entries < n_kept and guess is not zero:
            candidates = pre_latents_above(centred, self.W_enc, self.encoder_bias, zero)
        kept = keep_largest(candidates, n_kept)
        self._candidate_threshold = _CANDIDATE_SHARE * kept.values.min() if kept.n_entries == n_kept else None
        return kept

    def _auxk(self, inputs: Tensor, reconstruction: Tensor, dead: Tensor) -> Tensor:
        bias = self.b_enc[dead] if self.use_b_enc else None
        pre_latents = torch.nn.functional.linear(inputs - self.b_dec, self.W_enc[dead], bias)
        residual = inputs - reconstruction
        if self.detach_residual:
            residual = residual.detach()
        return auxk_loss(residual, pre_latents, self.W_dec[dead], self.k_aux)

    def _metrics(self, kept: SparseLatents, dead: Tensor) -> dict[str, Tensor]:
        device = kept.values.device
        return {
            "l0": torch.tensor(kept.n_entries / max(kept.n_rows, 1), device=device),
            "dead_fraction": torch.tensor(dead.numel() / self.n_latents, device=device),
            "threshold": self.threshold.clone(),
        }
