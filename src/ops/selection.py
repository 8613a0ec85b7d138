"""Exact selection of the largest pre-latents, and the threshold that keeps a stated number of them."""

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from src.ops import triton_encode, triton_products
from src.ops.processes import all_min, gather_rows, n_processes, rank
from src.ops.shapes import Pieces, PreLatents, Scalar
from src.ops.sparse_latents import SparseLatents

MOST_HELD = 1 << 24
# Many small tensors, each made between two large ones, would keep the memory of the large ones from being used again.
_MOST_PARTS = 64
# Positive floats sort as their bits do; bins are of their upper 19, which are 0.02 % of a value wide.
_BIN_BITS, _N_BINS = 12, 1 << 19
_INFINITY_BITS = 0x7F800000


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
    at = values.numel() - n_largest
    wide = values.to(torch.promote_types(values.dtype, torch.float32))  # numpy knows no bfloat16
    # NumPy's partition is vectorised, ten times as fast as torch's k-th value.
    return values.new_tensor(np.partition(wide.numpy(), at)[at])


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

    It lies half-way between the smallest kept and the largest dropped value, so that rounding of another batch size
    does not flip entries. One pass is enough to keep up to `most_held` values, and holds twice as many. To keep more, a
    first pass counts values by their leading bits, and a second one holds those of the bins that the two lie in.

    Args:
        k: the mean number of entries per row to keep.
        n_rows: the number of rows of all batches together.
        most_held: see above.

    Raises:
        ValueError: when `k` is not positive.
    """

    def __init__(self, k: float, n_rows: int, most_held: int = MOST_HELD) -> None:
        if k <= 0:
            raise ValueError(f"Expected a positive k, got {k}.")
        self._n_rows, self._n_wanted = n_rows, round(k * n_rows) + 1
        self._counts = None if self._n_wanted <= most_held else torch.zeros(_N_BINS, dtype=torch.int64)
        self._held: list[Tensor] = []
        self._low, self._high, self._n_held, self._n_seen = 0.0, float("inf"), 0, 0

    def update(self, pre_latents: PreLatents) -> None:
        """Adds a batch [<= n_rows, n_latents]; ReLU is applied here."""
        self.add(self.candidates(pre_latents), len(pre_latents))

    @property
    def floor(self) -> float:
        """What values must exceed to matter; not negative."""
        return self._low

    def candidates(self, pre_latents: Float[Tensor, "*_"]) -> Shaped[Tensor, " _"]:
        """Returns what a batch [n, n_latents] adds: counts of its values, or those that matter; changes nothing.

        The values above `floor` alone will do as well.
        """
        values = pre_latents[(pre_latents > self._low) & (pre_latents <= self._high)]
        if self._counts is None:
            return values
        return torch.bincount(values.float().view(torch.int32) >> _BIN_BITS, minlength=_N_BINS)

    def add(self, candidates: Shaped[Tensor, " _"], n_rows: int) -> None:
        """Adds the candidates of `n_rows` rows."""
        self._n_seen += n_rows
        if self._counts is not None:
            self._counts += candidates.cpu()
            return
        if not candidates.numel():
            return
        self._held.append(candidates)
        self._n_held += candidates.numel()
        if len(self._held) == _MOST_PARTS:
            self._held = [torch.cat(self._held)]
        if self._n_held > 2 * self._n_wanted and self._high == float("inf"):
            self._held = [_largest(torch.cat(self._held), self._n_wanted)]
            self._low, self._n_held = float(self._held[0].min()), self._n_wanted

    def needs_another_pass(self) -> bool:
        """Says after a pass over all rows whether they are to be added once more.

        Raises:
            ValueError: when the batches did not hold `n_rows` rows.
        """
        if self._n_seen != self._n_rows:
            raise ValueError(f"Expected {self._n_rows} rows to calibrate on, got {self._n_seen}.")
        if self._counts is None or int(self._counts.sum()) < self._n_wanted:
            return False
        at_least = self._counts.flip(0).cumsum(0).flip(0)  # values in a bin and above
        lowest, highest = (int((at_least >= rank).sum()) - 1 for rank in (self._n_wanted, self._n_wanted - 1))
        edges = torch.tensor([(lowest << _BIN_BITS) - 1, ((highest + 1) << _BIN_BITS) - 1], dtype=torch.int64)
        self._low, self._high = edges.clamp(0, _INFINITY_BITS).int().view(torch.float32).tolist()
        self._n_wanted -= int(at_least[highest + 1]) if highest + 1 < _N_BINS else 0
        self._counts, self._n_seen = None, 0
        return True

    def compute(self) -> Scalar:
        """Returns a 0-d threshold; 0 when there are not more than `k * n_rows` positive values.

        Raises:
            ValueError: when the batches did not hold `n_rows` rows.
        """
        if self._n_seen != self._n_rows:
            raise ValueError(f"Expected {self._n_rows} rows to calibrate on, got {self._n_seen}.")
        values = torch.cat(self._held) if self._held else torch.zeros(0)
        if values.numel() < self._n_wanted:
            return values.new_zeros(())
        dropped, kept = _largest(values, self._n_wanted).topk(2, largest=False).values
        middle = dropped + (kept - dropped) / 2
        return torch.where(middle < kept, middle, dropped)


def _largest(values: Tensor, n: int) -> Tensor:
    """Returns the n largest of values, in any order; torch's topk takes 16 bytes a value on the CPU."""
    if values.is_cuda:
        return values.topk(n, sorted=False).values
    return torch.from_numpy(np.partition(values.numpy(), len(values) - n)[len(values) - n :])


def calibrate_threshold(pre_latents: Pieces, k: float, n_rows: int) -> Scalar:
    """Returns what a `ThresholdSearch` finds in batches [<= n_rows, n_latents]."""
    search = ThresholdSearch(k, n_rows, most_held=round(k * n_rows) + 1)  # batches come once
    for batch in pre_latents:
        search.update(batch)
    return search.compute()
