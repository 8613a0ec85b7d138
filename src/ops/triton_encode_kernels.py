"""Triton kernels that select pre-latents; `triton_encode` launches them.

One program takes one row and walks it in blocks, so entries come out in the order of their neurons without atomics.
"""
# ruff: noqa: ANN001, ANN201, ANN202 - the compiler takes no types but constexpr

import triton
import triton.language as tl


@triton.jit
def _block_of_row(
    pre_latents,
    threshold,
    row,
    first,
    n_latents,
    row_stride,
    column_stride,
    PER_NEURON: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Returns a block's neuron ids, its values, and which of them exceed their threshold: the neuron's or the row's."""
    neurons = first + tl.arange(0, BLOCK).to(tl.int64)
    is_neuron = neurons < n_latents
    values = tl.load(pre_latents + row * row_stride + neurons * column_stride, mask=is_neuron, other=0.0)
    bound = tl.load(threshold + neurons, mask=is_neuron, other=0.0) if PER_NEURON else tl.load(threshold + row)
    return neurons, values, (values.to(tl.float32) > bound.to(tl.float32)) & is_neuron


@triton.jit
def count_kernel(
    counts, pre_latents, threshold, n_latents, row_stride, column_stride, PER_NEURON: tl.constexpr, BLOCK: tl.constexpr
):
    """Counts the pre-latents of a row above their thresholds; grid (rows,)."""
    row = tl.program_id(0).to(tl.int64)
    found = tl.full((BLOCK,), 0, tl.int32)
    for first in range(0, n_latents, BLOCK):
        _, _, is_above = _block_of_row(
            pre_latents, threshold, row, first, n_latents, row_stride, column_stride, PER_NEURON, BLOCK
        )
        found += is_above.to(tl.int32)
    tl.store(counts + row, tl.sum(found, axis=0).to(tl.int64))


@triton.jit
def write_kernel(
    neuron_ids,
    values,
    pre_latents,
    threshold,
    row_offsets,
    n_latents,
    row_stride,
    column_stride,
    PER_NEURON: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Writes what `count_kernel` counted, in ascending neuron ids; grid (rows,)."""
    row = tl.program_id(0).to(tl.int64)
    start = tl.load(row_offsets + row)
    for first in range(0, n_latents, BLOCK):
        neurons, block, is_above = _block_of_row(
            pre_latents, threshold, row, first, n_latents, row_stride, column_stride, PER_NEURON, BLOCK
        )
        ranks = tl.cumsum(is_above.to(tl.int32), axis=0)
        tl.store(neuron_ids + start + ranks - 1, neurons, mask=is_above)
        tl.store(values + start + ranks - 1, block, mask=is_above)
        start += tl.sum(is_above.to(tl.int32), axis=0)


@triton.jit
def row_bound_kernel(bounds, pre_latents, n_latents, k, row_stride, column_stride, BLOCK: tl.constexpr):
    """Writes, for each row, the float32 just below the k-th largest of the maxima of BLOCK groups; grid (rows,).

    A group is every BLOCK-th neuron. At least k values reach the k-th largest maximum, so all of the k largest exceed
    what is written: 0 when fewer than k groups have a positive value.
    """
    row = tl.program_id(0).to(tl.int64)
    maxima = tl.full((BLOCK,), 0.0, tl.float32)
    for first in range(0, n_latents, BLOCK):
        neurons = first + tl.arange(0, BLOCK).to(tl.int64)
        block = tl.load(pre_latents + row * row_stride + neurons * column_stride, mask=neurons < n_latents, other=0.0)
        block = block.to(tl.float32)
        maxima = tl.where(block > maxima, block, maxima)
    bits = maxima.to(tl.int32, bitcast=True)
    # Positive floats are ordered as their bits are: find the largest number that at least k maxima reach, bit by bit.
    bound = 0
    for position in range(31):
        trial = bound | (1 << (30 - position))
        bound = tl.where(tl.sum((bits >= trial).to(tl.int32), axis=0) >= k, trial, bound)
    tl.store(bounds + row, tl.where(bound > 0, bound - 1, 0).to(tl.float32, bitcast=True))


@triton.jit
def _candidate_bits(values, first, end, BLOCK: tl.constexpr):
    """Returns the bits of a block of positive candidates, 0 past their end."""
    places = first + tl.arange(0, BLOCK)
    block = tl.load(values + places, mask=places < end, other=0.0)
    return block.to(tl.float32).to(tl.int32, bitcast=True)


@triton.jit
def _n_reaching(bound, first_block, values, start, end, BLOCK: tl.constexpr):
    """Counts a row's candidates whose bits are at least a bound; its first block is at hand."""
    count = tl.sum((first_block >= bound).to(tl.int32), axis=0)
    for first in range(start + BLOCK, end, BLOCK):
        count += tl.sum((_candidate_bits(values, first, end, BLOCK) >= bound).to(tl.int32), axis=0)
    return count


@triton.jit
def keep_largest_kernel(kept_ids, kept_values, kept_offsets, neuron_ids, values, row_offsets, k, BLOCK: tl.constexpr):
    """Keeps the k largest of a row's positive candidates (all when there are fewer); grid (rows,).

    Ties at the smallest kept value go to the lowest neuron ids. Most rows have one block of candidates, which stays
    in registers during the search.
    """
    row = tl.program_id(0).to(tl.int64)
    start = tl.load(row_offsets + row)
    end = tl.load(row_offsets + row + 1)
    first_block = _candidate_bits(values, start, end, BLOCK)
    smallest = 0
    for position in range(31):
        trial = smallest | (1 << (30 - position))
        n_reached = _n_reaching(trial, first_block, values, start, end, BLOCK)
        smallest = tl.where(n_reached >= k, trial, smallest)
    free = k - _n_reaching(smallest + 1, first_block, values, start, end, BLOCK)
    target = tl.load(kept_offsets + row)
    for first in range(start, end, BLOCK):
        places = first + tl.arange(0, BLOCK)
        bits = _candidate_bits(values, first, end, BLOCK)
        is_tie = ((bits == smallest) & (places < end)).to(tl.int32)
        is_kept = (bits > smallest) | ((is_tie > 0) & (tl.cumsum(is_tie, axis=0) <= free))
        free -= tl.sum(is_tie, axis=0)
        ranks = tl.cumsum(is_kept.to(tl.int32), axis=0)
        tl.store(kept_ids + target + ranks - 1, tl.load(neuron_ids + places, mask=is_kept, other=0), mask=is_kept)
        tl.store(kept_values + target + ranks - 1, tl.load(values + places, mask=is_kept, other=0.0), mask=is_kept)
        target += tl.sum(is_kept.to(tl.int32), axis=0)
