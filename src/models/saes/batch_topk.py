"""BatchTopK: keeps the largest k pre-latents per row on average, chosen over the whole batch."""

import math

import torch

from src.models.saes.k_sparse import KSparse
from src.ops.encoder_product import EncoderProduct
from src.ops.processes import all_counts
from src.ops.selection import keep_largest_of_all, smallest_of_all
from src.ops.sparse_latents import SparseLatents

# The next batch's candidates are the pre-latents above a share of the last smallest kept one. Higher finds fewer
# candidates but misses more often: the value that n_kept others exceed moves by about 1 / sqrt(n_kept) from batch to
# batch. A miss costs another encoder product, over the pre-latents above a lower share first, and changes no result.
_LARGEST_SHARE = 0.98
_MARGIN = 3.0
_SHARE_AFTER_MISS = 0.9


class BatchTopK(KSparse):
    """BatchTopK SAE (Bussmann, Leask and Nanda 2024, arXiv 2412.06410).

    Training keeps the `k * n_rows` largest ReLU'd pre-latents of the batch, exactly; a short batch keeps k times its
    rows. Inference keeps what exceeds `threshold`, which is what makes a row's latents independent of its batch.

    The defaults differ from the authors' code and from sae-1n, which copies it: the encoder bias is used, the AuxK
    residual is detached (else the main reconstruction learns to leave the auxiliary one an easy target), atoms are
    unit-norm after the step and not before it, the threshold starts at its first observation instead of at 0, and
    validation moves nothing. `conf/sae/batch_topk_sae1n.yaml` switches all of that back.
    """

    def select(self, product: EncoderProduct, k: int) -> SparseLatents:
        """Keeps the `k * n_rows` largest of the batch of all processes; see `KSparse.select`."""
        guess, zero = self.candidate_threshold, torch.zeros_like(self.threshold)
        candidates = product.above(zero if guess is None else guess)
        n_rows, n_candidates = all_counts(product.shape[0], candidates.n_entries, like=self.threshold)
        n_kept = k * n_rows
        for threshold in () if guess is None else (_SHARE_AFTER_MISS * guess, zero):
            if n_candidates >= n_kept:
                break
            candidates = product.above(threshold)
            (n_candidates,) = all_counts(candidates.n_entries, like=self.threshold)
        self.candidate_threshold = None
        kept = keep_largest_of_all(candidates, n_kept)
        if n_candidates >= n_kept:
            share = min(max(1 - _MARGIN / math.sqrt(n_kept), 0.0), _LARGEST_SHARE)
            self.candidate_threshold = share * smallest_of_all(kept.values)
        return kept
