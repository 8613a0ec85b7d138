"""BatchTopK: keeps the largest k pre-latents per row on average, chosen over the whole batch."""

import torch

from src.models.saes.k_sparse import KSparse
from src.ops.encoder_product import EncoderProduct
from src.ops.processes import all_counts
from src.ops.selection import keep_largest_of_all, smallest_of_all
from src.ops.sparse_latents import SparseLatents

# The next batch's candidates are the pre-latents above this share of the last smallest kept one. Higher finds fewer
# candidates but misses more often (in 400 batches of 64 rows 0.9 never, 0.95 nine times, 0.98 a hundred times; in
# batches of 256 rows and more 0.95 never); a miss costs a second encoder product and changes no result.
_CANDIDATE_SHARE = 0.95


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
        if n_candidates < n_kept and guess is not None:
            candidates = product.above(zero)
            (n_candidates,) = all_counts(candidates.n_entries, like=self.threshold)
        self.candidate_threshold = None
        kept = keep_largest_of_all(candidates, n_kept)
        if n_candidates >= n_kept:
            self.candidate_threshold = _CANDIDATE_SHARE * smallest_of_all(kept.values)
        return kept
