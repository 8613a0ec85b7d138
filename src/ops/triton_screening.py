"""Screening products on CUDA whose results are never written: Triton kernels that keep what is above a bound.

Float8 is not used: its three bits give a bound of more than an eighth of the two norms, several standard deviations
of a pre-latent, so that most pairs would be candidates.
"""

import torch
from jaxtyping import BFloat16, Float, Int64
from torch import Tensor

from src.ops.triton_products import launch

WIDTH_MULTIPLE = 64
"""Widths are multiples of it: the terms that a program multiplies at a time."""

# A usual tile of a half-precision product on Ampere and Hopper. Untuned.
_BLOCK_ROWS = 128
_BLOCK_NEURONS = 128
_TILE = {"BLOCK_ROWS": _BLOCK_ROWS, "BLOCK_NEURONS": _BLOCK_NEURONS, "BLOCK_TERMS": WIDTH_MULTIPLE}
_OPTIONS = {"num_warps": 8, "num_stages": 3}


def reaching(
    rows: BFloat16[Tensor, "n_rows width"],
    weights: BFloat16[Tensor, "n_latents width"],
    bounds: Float[Tensor, " n_rows"] | None,
    most: int,
) -> Int64[Tensor, " n_found"] | None:
    """Returns where `rows @ weights.T` reaches a bound, as ascending places in the flattened product.

    Sums are float32. A tile takes its places in the result from a counter; sorting them afterwards makes every run give
    the same.

    Args:
        rows: [n_rows, width], contiguous.
        weights: [n_latents, width], contiguous.
        bounds: [n_rows] float32, or None for 0.
        most: room for this many places is made; None is returned where there are more.
    """
    from src.ops import triton_screening_kernels as kernels

    n_rows, n_latents = len(rows), len(weights)
    counter = torch.zeros(1, dtype=torch.int64, device=rows.device)
    places = torch.empty(most, dtype=torch.int64, device=rows.device)
    sizes = (n_rows, n_latents, rows.shape[1])
    launch(
        kernels.reaching_kernel,
        _grid(*sizes[:2]),
        places,
        counter,
        rows,
        weights,
        bounds,
        most,
        *sizes,
        **_TILE,
        **_OPTIONS,
    )
    n_found = int(counter)
    return places[:n_found].sort().values if n_found <= most else None


def group_maxima(
    rows: BFloat16[Tensor, "n_rows width"], weights: BFloat16[Tensor, "n_latents width"], n_groups: int
) -> Float[Tensor, "n_rows _"]:
    """Returns the maxima of `rows @ weights.T` over groups of neighbouring neurons, at least `n_groups` of them.

    Args:
        rows: [n_rows, width], contiguous.
        weights: [n_latents, width], contiguous.
        n_groups: at most n_latents; groups have 2^i neurons, at most 128, but for the last.
    """
    from src.ops import triton_screening_kernels as kernels

    n_rows, n_latents = len(rows), len(weights)
    group_size = min(_BLOCK_NEURONS, 1 << (n_latents // n_groups).bit_length() - 1)
    n_groups = -(-n_latents // group_size)
    maxima = torch.empty(n_rows, n_groups, dtype=torch.float32, device=rows.device)
    sizes = (n_rows, n_latents, n_groups, rows.shape[1])
    constants = {"GROUP": group_size, **_TILE, **_OPTIONS}
    launch(kernels.group_maxima_kernel, _grid(n_rows, n_latents), maxima, rows, weights, *sizes, **constants)
    return maxima


def _grid(n_rows: int, n_latents: int) -> tuple[int, int]:
    # Neighbouring programs share their neurons' weights, the larger side.
    return -(-n_rows // _BLOCK_ROWS), -(-n_latents // _BLOCK_NEURONS)
