"""Exact selection of the largest pre-latents, and the threshold that keeps a stated number of them."""

import torch
from jaxtyping import Float
from torch import Tensor

from src.ops import triton_encode, triton_products
from src.ops.processes import all_min, gather_rows, n_processes, rank
from src.ops.shapes import Pieces, PreLatents, Scalar
from src.ops.sparse_latents import SparseLatents


def keep_largest(candidates: SparseLatents, n_kept: int) -> SparseLatents:
    """Keeps the `n_kept` largest entries of a whole batch, exactly.

    Ties at the smallest kept value go to the lowest position `row * n_latents + neuron_id`, so the result is the same
    on every run and does not depend on how the candidates were found.

    Args:
        candidates: entries that contain the `n_kept` largest of the batch (or all there are).
        n_kept: the number to keep; with fewer candidates, all are kept.

    Returns:
        The kept entries, in the order of the candidates.
    """
    if candidates.n_entries <= n_kept:
        return candidates
    smallest = _smallest_of_largest(candidates.values, n_kept)
    above = candidates.values > smallest
    ties = candidates.values == smallest
    return candidates.where(above | (ties & (ties.cumsum(0) <= n_kept - above.sum())))


def keep_largest_of_all(candidates: SparseLatents, n_kept: int) -> SparseLatents:
    """Keeps the `n_kept` largest entries of the batch of all processes, exactly; see `keep_largest`.

    Processes exchange values only, no more than `n_kept + 1` each. Ties go to lower ranks first, and so to the lowest
    positions of the whole batch.

    Args:
        candidates: entries of this process's rows; those of all processes contain the largest.
        n_kept: the number to keep in all processes together.

    Returns:
        The kept entries of this process.
    """
    if n_processes() == 1:
        return keep_largest(candidates, n_kept)
    values = candidates.values
    if values.numel() > n_kept + 1:
        values = values.topk(n_kept + 1, sorted=False).values
    values = gather_rows(values)
    if values.numel() <= n_kept:
        return candidates
    smallest = _smallest_of_largest(values, n_kept)
    ties = candidates.values == smallest
    n_ties_before = gather_rows(ties.sum().unsqueeze(0))[: rank()].sum()
    n_ties = n_kept - (values > smallest).sum() - n_ties_before
    return candidates.where((candidates.values > smallest) | (ties & (ties.cumsum(0) <= n_ties)))


def smallest_of_all(values: Float[Tensor, " n"]) -> Scalar:
    """Returns the smallest value [n] of all processes, 0-d; infinity where no process has one."""
    return all_min(values.min() if values.numel() else values.new_full((), torch.inf))


def _smallest_of_largest(values: Tensor, n_largest: int) -> Tensor:
    if values.is_cuda:  # there its top-k is many times faster than its k-th value
        return values.topk(n_largest, sorted=False).values.amin()
    return values.kthvalue(values.numel() - n_largest + 1).values


def keep_largest_per_row(pieces: Pieces, k: int) -> SparseLatents:
    """Keeps the `k` largest positive pre-latents of each row, exactly; fewer where fewer are positive.

    Ties at the smallest kept value go to the lowest neuron ids.

    Args:
        pieces: of `pre_latent_pieces`.
        k: the number to keep per row.
    """
    kept = [_largest_of_rows(piece, k) for piece in pieces]
    return SparseLatents.cat(kept) if len(kept) != 1 else kept[0]


def _largest_of_rows(pre_latents: Tensor, k: int) -> SparseLatents:
    if triton_products.is_available(pre_latents):
        return triton_encode.row_top_k(pre_latents, k)
    n_rows, n_latents = pre_latents.shape
    values, neuron_ids = pre_latents.topk(min(k + 1, n_latents), dim=1)
    if k < n_latents:
        tied = (values[:, k - 1] == values[:, k]) & (values[:, k] > 0)
        neuron_ids = neuron_ids[:, :k]
        for row in tied.nonzero().squeeze(1).tolist():  # top-k does not say which of equal values it takes
            neuron_ids[row] = pre_latents[row].sort(descending=True, stable=True).indices[:k]
    neuron_ids = neuron_ids.sort(dim=1).values
    values = pre_latents.gather(1, neuron_ids)
    kept = values > 0
    row_offsets = torch.cat([neuron_ids.new_zeros(1), kept.sum(1).cumsum(0)])
    return SparseLatents(row_offsets, neuron_ids[kept], values[kept], (n_rows, n_latents))


class ThresholdSearch:
    """Finds the threshold above which held-out pre-latents are kept `k` times per row on average, exactly.

    One pass holds no more than the `k * n_rows + 1` largest values seen so far: those of the whole set are among
    them. The threshold lies half-way between the smallest kept and the largest dropped value, so that rounding of
    another batch size does not flip entries.

    Args:
        k: the mean number of entries per row to keep.
        n_rows: the number of rows of all batches together.

    Raises:
        ValueError: when `k` is not positive.
    """

    def __init__(self, k: float, n_rows: int) -> None:
        if k <= 0:
            raise ValueError(f"Expected a positive k, got {k}.")
        self._n_rows, self._n_wanted = n_rows, round(k * n_rows) + 1
        self._largest: list[Tensor] = []
        self._bound, self._n_held, self._n_seen = 0.0, 0, 0

    def update(self, pre_latents: PreLatents) -> None:
        """Adds a batch [<= n_rows, n_latents]; ReLU is applied here."""
        self.add(self.candidates(pre_latents), len(pre_latents))

    def candidates(self, pre_latents: PreLatents) -> Float[Tensor, " n_candidates"]:
        """Returns the values of a batch [n, n_latents] that may be among the largest; changes nothing."""
        return pre_latents[pre_latents > self._bound]

    def add(self, candidates: Float[Tensor, " n_candidates"], n_rows: int) -> None:
        """Adds the candidates of `n_rows` rows."""
        self._n_seen += n_rows
        self._largest.append(candidates)
        self._n_held += self._largest[-1].numel()
        if self._n_held > 2 * self._n_wanted:
            self._largest = [torch.cat(self._largest).topk(self._n_wanted, sorted=False).values]
            self._bound, self._n_held = float(self._largest[0].min()), self._n_wanted

    def compute(self) -> Scalar:
        """Returns a 0-d threshold; 0 when there are not more than `k * n_rows` positive values.

        Raises:
            ValueError: when the batches did not hold `n_rows` rows.
        """
        if self._n_seen != self._n_rows:
            raise ValueError(f"Expected {self._n_rows} rows to calibrate on, got {self._n_seen}.")
        values = torch.cat(self._largest)
        if values.numel() < self._n_wanted:
            return values.new_zeros(())
        dropped, kept = values.topk(self._n_wanted).values[-2:].flip(0)
        middle = dropped + (kept - dropped) / 2
        return torch.where(middle < kept, middle, dropped)


def calibrate_threshold(pre_latents: Pieces, k: float, n_rows: int) -> Scalar:
    """Returns what a `ThresholdSearch` finds in batches [<= n_rows, n_latents]."""
    search = ThresholdSearch(k, n_rows)
    for batch in pre_latents:
        search.update(batch)
    return search.compute()
