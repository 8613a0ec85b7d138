"""Selection of pre-latents on CUDA, exact and the same on every run, by Triton kernels."""

import torch
from jaxtyping import Float
from torch import Tensor

from src.ops.shapes import PreLatents
from src.ops.sparse_latents import SparseLatents
from src.ops.triton_products import launch

# A block of 1024 is two 16-byte loads of float32 for each lane of the four warps. Untuned, as are the others.
_BLOCK = 1024
_WARPS = 4
# With four groups per kept latent, few values besides the k largest reach the k-th largest of the groups' maxima.
_GROUPS_PER_KEPT = 4
# More groups than these would not stay in a program's registers.
_MOST_GROUPS = 8192
_CANDIDATE_BLOCK = 256


def entries_above(pre_latents: PreLatents, threshold: Float[Tensor, "*_"]) -> SparseLatents:
    """Returns the pre-latents strictly above a threshold, compared in float32.

    A first pass counts them per row, a second writes them; reading how many there are waits for the first.

    Args:
        pre_latents: [n_rows, n_latents].
        threshold: 0-d, [n_latents] for one per neuron, or [n_rows, 1] for one per row.
    """
    from src.ops import triton_encode_kernels as kernels

    n_rows, n_latents = pre_latents.shape
    per_neuron = threshold.ndim == 1
    threshold = threshold.expand(n_latents) if per_neuron else threshold.expand(n_rows, 1)
    arguments = pre_latents, threshold.contiguous()
    constants = {"PER_NEURON": per_neuron, "BLOCK": min(_BLOCK, _power_of_2(n_latents)), "num_warps": _WARPS}
    counts = torch.empty(n_rows, dtype=torch.int64, device=pre_latents.device)
    launch(kernels.count_kernel, (n_rows,), counts, *arguments, n_latents, *pre_latents.stride(), **constants)
    row_offsets, neuron_ids, values = _empty_entries(counts, pre_latents)
    arguments = *arguments, row_offsets, n_latents, *pre_latents.stride()
    launch(kernels.write_kernel, (n_rows,), neuron_ids, values, *arguments, **constants)
    return SparseLatents(row_offsets, neuron_ids, values, (n_rows, n_latents))


def row_top_k(pre_latents: PreLatents, k: int) -> SparseLatents:
    """Keeps the `k` largest positive pre-latents of each row [n_rows, n_latents]; fewer where fewer are positive.

    Ties at the smallest kept value go to the lowest neuron ids. The k-th largest of the maxima of disjoint groups of
    neurons bounds the k-th largest value from below; the exact choice is made among what reaches that bound.
    """
    from src.ops import triton_encode_kernels as kernels

    n_rows, n_latents = pre_latents.shape
    bounds = torch.empty(n_rows, 1, dtype=torch.float32, device=pre_latents.device)
    n_groups = min(max(_BLOCK, _GROUPS_PER_KEPT * k), _MOST_GROUPS, n_latents)
    constants = {"BLOCK": _power_of_2(n_groups), "num_warps": _WARPS}
    arguments = (bounds, pre_latents, n_latents, k, *pre_latents.stride())
    launch(kernels.row_bound_kernel, (n_rows,), *arguments, **constants)
    candidates = entries_above(pre_latents, bounds)
    counts = candidates.row_offsets.diff().clamp_max(k)
    row_offsets, neuron_ids, values = _empty_entries(counts, pre_latents)
    kept = (neuron_ids, values, row_offsets)
    entries = (candidates.neuron_ids, candidates.values, candidates.row_offsets)
    launch(kernels.keep_largest_kernel, (n_rows,), *kept, *entries, k, BLOCK=_CANDIDATE_BLOCK, num_warps=1)
    return SparseLatents(row_offsets, neuron_ids, values, (n_rows, n_latents))


def _empty_entries(counts: Tensor, pre_latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    row_offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    n_entries = int(row_offsets[-1])
    return row_offsets, counts.new_empty(n_entries), pre_latents.new_empty(n_entries)


def _power_of_2(size: int) -> int:
    """Returns the smallest power of two that is not below a size."""
    return 1 << (size - 1).bit_length()
