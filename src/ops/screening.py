"""Exact pre-latents above a threshold at about half precision's speed.

A product in bfloat16 finds the pairs of row and neuron that could be above the threshold, and only those few are
computed in float32. What comes out is what the float32 product would give, but for the rounding of its sums.

No pair is missed, because the product bounds its own error. With x a row, w an encoder row, K terms in a sum:

- rounding to bfloat16, which has 8 significant bits, moves each factor by at most 2^-8 of itself, and so the product
  by at most (2^-7 + 2^-16) |x| |w| (Cauchy-Schwarz);
- sums of K float32 terms, in whatever order, are wrong by at most K 2^-24 times the sum of the terms' absolute values
  (Higham 2002, "Accuracy and stability of numerical algorithms", section 3.1); that counts twice, because the float32
  product that the result stands for rounds as well;
- numbers below 2^-126 may be flushed to zero: adding 2^-50 to both norms makes up for more than that.

The bound is itself a product of a number of the row and one of the neuron, and so are bias and threshold. Three more
columns on each side put them into the product, `[x, 1, 1, c |x|] @ [w, s_high, s_low, |w|].T` with s the bias less the
threshold in two bfloat16 parts: a pair whose pre-latent exceeds its threshold comes out not negative. That needs no
pass over the product but the one that looks at signs, and rounding the output does not change a sign.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import BFloat16, Bool, Float
from torch import Tensor

from src.ops.selection import keep_largest_per_row
from src.ops.shapes import Atoms, PerNeuron, Rows, Scalar
from src.ops.sparse_latents import SparseLatents
from src.ops.sparse_products import kept_dot_products, pre_latent_pieces, pre_latents_above

_TERMS = 1.02 * 2.0**-23  # both sums of float32; the factors in one of them have been rounded up to 2^-8
_SMALL = 2.0**-50
# Longer vectors could overflow in the product; they go to the float32 path.
_LARGE = 2.0**60
_MOST_TERMS = 1 << 15
SCREEN_BELOW = 0.03
"""Share of pre-latents above the threshold below which screening is worth a try."""

# Of a piece's pairs; where more could be above the threshold, the float32 product is the faster way.
_MOST_CANDIDATES = 1 / 16
_GROUPS_PER_KEPT = 4
# Below, the product takes hardly longer than what screening adds to it.
_FEWEST_WEIGHTS = 1 << 17
_BELOW_ZERO = -(2.0**-126)
_FOUR_SIGNS = -0x7FFF7FFF7FFF8000  # 0x8000 four times
# Of a piece, on the CPU (4 MiB, in cache) and elsewhere, where it only bounds the memory.
_PIECE_ELEMENTS = (2**21, 2**27)
_LEAST_ROWS = 256
_COLUMNS = 32  # widths that the CPU's bfloat16 product is fast for are multiples of it


def error_factor(n_terms: int) -> float:
    """Returns c: the two products of x and w differ by at most c |x| |w|."""
    return 2.0**-7 + 2.0**-16 + n_terms * _TERMS


def is_worthwhile(device: torch.device, d_in: int, n_latents: int) -> bool:
    """Whether screening is the faster way, by what a device offers and by the width of an SAE."""
    if d_in * n_latents < _FEWEST_WEIGHTS:
        return False
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    # The public torch.cpu.get_capabilities is younger than the oldest torch that is supported.
    return device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def can_screen(inputs: Rows, W_enc: Atoms) -> bool:
    """Whether operands are such that screening gives what their product does: float32, outside of autocast."""
    kind = inputs.device.type
    is_cast = torch.is_autocast_enabled(kind)
    return inputs.dtype == W_enc.dtype == torch.float32 and kind in ("cpu", "cuda") and not is_cast


class ScreeningWeights(NamedTuple):
    """The encoder's side of the screening product.

    Attributes:
        extended: [n_latents, width] bfloat16: W_enc and three columns, filled up with zeros.
        largest_norm: the largest norm of an encoder row as the bound takes it, 0-d.
        slack: the largest amount that was added to a bias for its own rounding, 0-d.
        is_safe: whether all is finite and small enough for the bound to hold.
    """

    extended: BFloat16[Tensor, "n_latents width"]
    largest_norm: Scalar
    slack: Scalar
    is_safe: bool


def screening_weights(W_enc: Atoms, b_enc: PerNeuron | None, threshold: Scalar | PerNeuron) -> ScreeningWeights:
    """Returns the encoder's side of the product for a threshold, 0-d or [n_latents]."""
    n_latents, d_in = W_enc.shape
    width = -(-(d_in + 3) // _COLUMNS) * _COLUMNS
    bias = threshold.new_zeros(()) if b_enc is None else b_enc
    norms = torch.linalg.vector_norm(W_enc, dim=1) + _SMALL
    # For the rounding of this sum and of the two parts, and for their share in the rounding of the product.
    slack = (bias.abs() + threshold.abs()) * (2.0**-15 + 2 * width * _TERMS)
    shift = (bias - threshold + slack).expand(n_latents)
    high = shift.bfloat16()
    extended = W_enc.new_empty(n_latents, width, dtype=torch.bfloat16)
    extended[:, :d_in] = W_enc
    extended[:, d_in] = high
    extended[:, d_in + 1] = shift - high
    extended[:, d_in + 2] = norms
    extended[:, d_in + 3 :] = 0
    largest_norm = norms.max()
    is_safe = width <= _MOST_TERMS and bool((largest_norm < _LARGE) & (shift.abs().max() < _LARGE))
    return ScreeningWeights(extended, largest_norm, slack.max(), is_safe)


class ScreeningRows(NamedTuple):
    """The activations' side of the screening product.

    Attributes:
        extended: [n_rows, width] bfloat16.
        errors: [n_rows], the bound for an encoder row of norm 1.
        is_safe: [n_rows], whether the bound holds; not for rows with values that are not finite, or are huge.
    """

    extended: BFloat16[Tensor, "n_rows width"]
    errors: Float[Tensor, " n_rows"]
    is_safe: Bool[Tensor, " n_rows"]


def screening_rows(inputs: Rows, width: int) -> ScreeningRows:
    """Returns the activations' side of the product."""
    n_rows, d_in = inputs.shape
    norms = torch.linalg.vector_norm(inputs, dim=1)
    # 2^-6 for rounding both factors of the bound to bfloat16, and for the rounding of the norms.
    errors = error_factor(width) * (1 + 2.0**-6) * (norms + _SMALL)
    extended = inputs.new_empty(n_rows, width, dtype=torch.bfloat16)
    extended[:, :d_in] = inputs
    extended[:, d_in : d_in + 2] = 1
    extended[:, d_in + 2] = errors
    extended[:, d_in + 3 :] = 0
    return ScreeningRows(extended, errors, norms < _LARGE)


@torch.no_grad()
def screened_above(inputs: Rows, W_enc: Atoms, b_enc: PerNeuron | None, threshold: Scalar | PerNeuron) -> SparseLatents:
    """Returns the entries of `inputs @ W_enc.T + b_enc` strictly above a threshold, as `pre_latents_above` does.

    Rows for which the bound does not hold, and those with many pre-latents above the threshold, take the float32
    product, together with the rows of their piece.

    Args:
        inputs: [n_rows, d_in] float32.
        W_enc: [n_latents, d_in].
        b_enc: [n_latents], or None for no bias.
        threshold: 0-d, or [n_latents] for one threshold per neuron.
    """
    weights = screening_weights(W_enc, b_enc, threshold)
    if not weights.is_safe:
        return pre_latents_above(inputs, W_enc, b_enc, threshold)
    shape = (inputs.shape[0], W_enc.shape[0])
    candidates, exact, start = [], [], 0
    for rows, product, errors in _pieces(inputs, weights):
        flat_ids = None if errors is None else _few_not_negative(product)
        if flat_ids is not None:
            candidates.append(flat_ids + start)
        else:
            part = pre_latents_above(rows, W_enc, b_enc, threshold)
            exact.append((part.row_ids * shape[1] + part.neuron_ids + start, part.values))
        start += product.numel()
    flat_ids = torch.cat(candidates) if candidates else torch.empty(0, dtype=torch.int64, device=inputs.device)
    pattern = SparseLatents.from_flat_ids(flat_ids, weights.slack.expand(len(flat_ids)), shape)
    values = _values(pattern, inputs, W_enc, b_enc)
    bounds = threshold if threshold.ndim == 0 else pattern.per_neuron(threshold)
    kept = (values > bounds).nonzero().squeeze(1)
    flat_ids, values = flat_ids.index_select(0, kept), values.index_select(0, kept)
    if exact:
        flat_ids, order = torch.cat([flat_ids, *(ids for ids, _ in exact)]).sort()
        values = torch.cat([values, *(part for _, part in exact)])[order]
    return SparseLatents.from_flat_ids(flat_ids, values, shape)


@torch.no_grad()
def screened_largest_per_row(inputs: Rows, W_enc: Atoms, b_enc: PerNeuron | None, k: int) -> SparseLatents:
    """Returns the `k` largest positive pre-latents of each row, as `keep_largest_per_row` does.

    The k-th largest of the maxima of disjoint groups of neurons bounds the k-th largest pre-latent from below, once
    twice the error of the screening product is taken off.
    """
    weights = screening_weights(W_enc, b_enc, W_enc.new_zeros(()))
    n_groups = _GROUPS_PER_KEPT * k
    if not weights.is_safe or 2 * n_groups > len(W_enc) or not len(inputs):
        return keep_largest_per_row(pre_latent_pieces(inputs, W_enc, b_enc), k)
    parts = []
    for rows, product, errors in _pieces(inputs, weights):
        flat_ids = None
        if errors is not None:
            bounds = _row_bounds(product, k, n_groups, errors * weights.largest_norm + weights.slack)
            flat_ids = _few_flat_ids(product >= bounds, _MOST_CANDIDATES * product.numel())
        if flat_ids is None:
            parts.append(keep_largest_per_row(pre_latent_pieces(rows, W_enc, b_enc), k))
            continue
        shape = (product.shape[0], product.shape[1])
        candidates = SparseLatents.from_flat_ids(flat_ids, weights.slack.expand(len(flat_ids)), shape)
        parts.append(_largest_per_row(candidates.with_values(_values(candidates, rows, W_enc, b_enc)), k))
    return SparseLatents.cat(parts)


def _row_bounds(product: Tensor, k: int, n_groups: int, errors: Tensor) -> Tensor:
    """Returns what the product of each row's k largest positive pre-latents must reach [n_rows, 1]."""
    group_size = product.shape[1] // n_groups
    maxima = product[:, : group_size * n_groups].view(-1, group_size, n_groups).amax(1)
    # The output's rounding to bfloat16 may have moved both what is compared and what it is compared with.
    largest = maxima.topk(k, sorted=False).values.amin(1).float() * (1 - 2.0**-7)
    bounds = (largest - 2.1 * errors) * (1 - 2.0**-6)
    return bounds.clamp_min(_BELOW_ZERO).bfloat16().unsqueeze(1)


def _few_not_negative(product: Tensor) -> Tensor | None:
    """Returns where a contiguous product is not negative, ascending; None where it is so at too many places.

    The product is overwritten by its signs: four bfloat16 numbers in a word of 64 bits are looked at together.
    """
    most = _MOST_CANDIDATES * product.numel()
    if product.numel() % 4:
        return _few_flat_ids(product >= 0, most)
    words = product.view(-1).view(torch.int64).bitwise_and_(_FOUR_SIGNS)
    found = _few_flat_ids(words != _FOUR_SIGNS, most)
    if found is None:
        return None
    places = (product.view(-1).view(torch.int16).view(-1, 4).index_select(0, found) >= 0).nonzero()
    return found.index_select(0, places[:, 0]) * 4 + places[:, 1]


def _few_flat_ids(mask: Tensor, most: float) -> Tensor | None:
    """Returns where a contiguous mask is true, ascending; None where it is so at more than `most` places."""
    mask = mask.view(-1)
    if mask.numel() % 8:
        flat_ids = mask.nonzero().squeeze(1)
    else:  # in words of eight, most of which hold none
        words = mask.view(torch.int64).nonzero().squeeze(1)
        if len(words) > most:
            return None
        places = mask.view(-1, 8).index_select(0, words).nonzero()
        flat_ids = words.index_select(0, places[:, 0]) * 8 + places[:, 1]
    return flat_ids if len(flat_ids) <= most else None


def _pieces(inputs: Tensor, weights: ScreeningWeights) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """Yields pieces of rows, their screening product, and the errors of their rows; None where no bound holds."""
    if inputs.is_cuda:  # else parts of a sum may be added up in bfloat16
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    n_latents = len(weights.extended)
    n_rows = max(_LEAST_ROWS, _PIECE_ELEMENTS[inputs.is_cuda] // n_latents)
    buffer = weights.extended.new_empty(min(n_rows, len(inputs)), n_latents)
    sides = screening_rows(inputs, weights.extended.shape[1])
    all_safe = bool(sides.is_safe.all())
    for rows, *of_rows in zip(inputs.split(n_rows), *(side.split(n_rows) for side in sides), strict=True):
        extended, errors, is_safe = of_rows
        product = torch.mm(extended, weights.extended.T, out=buffer[: len(rows)])
        yield rows, product, errors if all_safe or is_safe.all() else None


def _values(candidates: SparseLatents, rows: Tensor, W_enc: Tensor, b_enc: Tensor | None) -> Tensor:
    values = kept_dot_products(candidates, rows, W_enc)
    return values if b_enc is None else values + candidates.per_neuron(b_enc)


def _largest_per_row(candidates: SparseLatents, k: int) -> SparseLatents:
    """Returns the largest entries of each row, with the candidates of a row side by side instead of all neurons."""
    counts = candidates.row_offsets.diff()
    places = torch.arange(candidates.n_entries, device=counts.device) - candidates.row_offsets[candidates.row_ids]
    shape = (candidates.n_rows, max(int(counts.max()), k))
    flat = candidates.row_ids * shape[1] + places
    values, neuron_ids = candidates.values.new_zeros(shape), candidates.neuron_ids.new_zeros(shape)
    values.view(-1)[flat] = candidates.values
    neuron_ids.view(-1)[flat] = candidates.neuron_ids
    kept = keep_largest_per_row([values], k)
    ids = neuron_ids.view(-1)[kept.row_ids * shape[1] + kept.neuron_ids]
    return SparseLatents(kept.row_offsets, ids, kept.values, candidates.shape)
