"""Triton kernels of the screening product; `triton_screening` launches them."""
# ruff: noqa: ANN001, ANN201, ANN202 - the compiler takes no types but constexpr

import triton
import triton.language as tl


@triton.jit
def _product_tile(
    rows,
    weights,
    n_rows,
    n_latents,
    width,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_NEURONS: tl.constexpr,
    BLOCK_TERMS: tl.constexpr,
):
    """Returns a tile of `rows @ weights.T` in float32, and the ids of its rows and neurons, some past the end."""
    row_ids = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    neuron_ids = tl.program_id(1).to(tl.int64) * BLOCK_NEURONS + tl.arange(0, BLOCK_NEURONS)
    # What is past the end reads the first rows again, which needs no mask; the caller leaves it out.
    row_starts = (row_ids % n_rows) * width
    weight_starts = (neuron_ids % n_latents) * width
    terms = tl.arange(0, BLOCK_TERMS)
    product = tl.zeros((BLOCK_ROWS, BLOCK_NEURONS), tl.float32)
    for first in range(0, width, BLOCK_TERMS):
        left = tl.load(rows + row_starts[:, None] + (first + terms)[None, :])
        right = tl.load(weights + weight_starts[None, :] + (first + terms)[:, None])
        product = tl.dot(left, right, product)
    return product, row_ids, neuron_ids


@triton.jit(do_not_specialize=["n_places"])
def reaching_kernel(
    places,
    counter,
    rows,
    weights,
    bounds,
    n_places,
    n_rows,
    n_latents,
    width,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_NEURONS: tl.constexpr,
    BLOCK_TERMS: tl.constexpr,
):
    """Writes and counts where the product reaches its row's bound, 0 without bounds; grid (rows, neurons) in tiles."""
    product, row_ids, neuron_ids = _product_tile(
        rows, weights, n_rows, n_latents, width, BLOCK_ROWS, BLOCK_NEURONS, BLOCK_TERMS
    )
    is_found = product >= 0.0 if bounds is None else product >= tl.load(bounds + row_ids % n_rows)[:, None]
    is_found = is_found & (row_ids < n_rows)[:, None] & (neuron_ids < n_latents)[None, :]
    found = is_found.to(tl.int32)
    per_row = tl.sum(found, axis=1)
    start = tl.atomic_add(counter, tl.sum(per_row, axis=0).to(tl.int64))
    before = (tl.cumsum(per_row, axis=0) - per_row)[:, None] + tl.cumsum(found, axis=1) - found
    targets = start + before
    flat_ids = row_ids[:, None] * n_latents + neuron_ids[None, :]
    tl.store(places + targets, flat_ids, mask=is_found & (targets < n_places))


@triton.jit
def group_maxima_kernel(
    maxima,
    rows,
    weights,
    n_rows,
    n_latents,
    n_groups,
    width,
    GROUP: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_NEURONS: tl.constexpr,
    BLOCK_TERMS: tl.constexpr,
):
    """Writes the largest number of each group of GROUP neighbouring neurons; grid (rows, neurons) in tiles."""
    product, row_ids, neuron_ids = _product_tile(
        rows, weights, n_rows, n_latents, width, BLOCK_ROWS, BLOCK_NEURONS, BLOCK_TERMS
    )
    product = tl.where((neuron_ids < n_latents)[None, :], product, float("-inf"))
    largest = tl.max(tl.reshape(product, (BLOCK_ROWS, BLOCK_NEURONS // GROUP, GROUP)), axis=2)
    groups = tl.program_id(1).to(tl.int64) * (BLOCK_NEURONS // GROUP) + tl.arange(0, BLOCK_NEURONS // GROUP)
    is_there = (row_ids < n_rows)[:, None] & (groups < n_groups)[None, :]
    tl.store(maxima + row_ids[:, None] * n_groups + groups[None, :], largest, mask=is_there)
