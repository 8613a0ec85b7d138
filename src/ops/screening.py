"""Exact pre-latents above a threshold at about half precision's speed.

A product in bfloat16 finds the pairs of row and neuron that could be above the threshold, and only those few are
computed in float32. What comes out is what the float32 product would give, but for the rounding of its sums.
No pair is missed, because the product bounds its own error (see `screening_bound`). On CUDA, where Triton is
installed, it is never written.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from src.ops import triton_products, triton_screening
from src.ops.screening_bound import ScreeningWeights, WeightsOf, screening_rows, screening_weights
from src.ops.selection import keep_largest_per_row
from src.ops.shapes import Atoms, PerNeuron, Rows, Scalar
from src.ops.sparse_latents import SparseLatents
from src.ops.sparse_products import kept_dot_products, pre_latent_pieces, pre_latents_above

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


@torch.no_grad()
def screened_above(
    inputs: Rows,
    W_enc: Atoms,
    b_enc: PerNeuron | None,
    threshold: Scalar | PerNeuron,
    weights_of: WeightsOf = screening_weights,
) -> SparseLatents:
    """Returns the entries of `inputs @ W_enc.T + b_enc` strictly above a threshold, as `pre_latents_above` does.

    Rows for which the bound does not hold, and those with many pre-latents above the threshold, take the float32
    product, together with the rows of their piece.

    Args:
        inputs: [n_rows, d_in] float32.
        W_enc: [n_latents, d_in].
        b_enc: [n_latents], or None for no bias.
        threshold: 0-d, or [n_latents] for one threshold per neuron.
        weights_of: makes the encoder's side of the product; see `remembered_weights`.
    """
    weights = weights_of(W_enc, b_enc, threshold)
    if not weights.is_safe:
        return pre_latents_above(inputs, W_enc, b_enc, threshold)
    shape = (inputs.shape[0], W_enc.shape[0])
    candidates, exact, start = [], [], 0
    for piece in _pieces(inputs, weights):
        flat_ids = None if piece.error_norms is None else _not_negative(piece, weights)
        if flat_ids is not None:
            candidates.append(flat_ids + start)
        else:
            part = pre_latents_above(piece.rows, W_enc, b_enc, threshold)
            exact.append((part.row_ids * shape[1] + part.neuron_ids + start, part.values))
        start += len(piece.rows) * shape[1]
    flat_ids = torch.cat(candidates) if candidates else torch.empty(0, dtype=torch.int64, device=inputs.device)
    pattern = SparseLatents.from_flat_ids(flat_ids, weights.slack.expand(len(flat_ids)), shape)
    values = _values(pattern, inputs, W_enc, b_enc)
    found = pattern.with_values(values).where(
        values > (threshold if threshold.ndim == 0 else pattern.per_neuron(threshold))
    )
    if not exact:
        return found
    flat_ids = torch.cat([found.row_ids * shape[1] + found.neuron_ids, *(ids for ids, _ in exact)])
    flat_ids, order = flat_ids.sort()
    return SparseLatents.from_flat_ids(flat_ids, torch.cat([found.values, *(part for _, part in exact)])[order], shape)


@torch.no_grad()
def screened_largest_per_row(
    inputs: Rows, W_enc: Atoms, b_enc: PerNeuron | None, k: int, weights_of: WeightsOf = screening_weights
) -> SparseLatents:
    """Returns the `k` largest positive pre-latents of each row, as `keep_largest_per_row` does.

    The k-th largest of the maxima of disjoint groups of neurons bounds the k-th largest pre-latent from below, once
    twice the error of the screening product is taken off.
    """
    weights = weights_of(W_enc, b_enc, W_enc.new_zeros(()))
    n_groups = _GROUPS_PER_KEPT * k
    if not weights.is_safe or 2 * n_groups > len(W_enc) or not len(inputs):
        return keep_largest_per_row(pre_latent_pieces(inputs, W_enc, b_enc), k)
    parts = []
    for piece in _pieces(inputs, weights):
        flat_ids = None if piece.error_norms is None else _reaching_the_kth(piece, weights, k, n_groups)
        if flat_ids is None:
            parts.append(keep_largest_per_row(pre_latent_pieces(piece.rows, W_enc, b_enc), k))
            continue
        shape = (len(piece.rows), len(W_enc))
        candidates = SparseLatents.from_flat_ids(flat_ids, weights.slack.expand(len(flat_ids)), shape)
        parts.append(_largest_per_row(candidates.with_values(_values(candidates, piece.rows, W_enc, b_enc)), k))
    return SparseLatents.cat(parts)


class _Piece(NamedTuple):
    """Rows in a row, their sides of product and bound (None where none holds), and room for the product.

    There is no room where Triton's kernels make the product and keep what is looked for.
    """

    rows: Tensor
    extended: Tensor
    error_norms: Tensor | None
    room: Tensor | None


def _pieces(inputs: Tensor, weights: ScreeningWeights) -> Iterator[_Piece]:
    n_latents = len(weights.extended)
    n_rows = max(_LEAST_ROWS, _PIECE_ELEMENTS[inputs.is_cuda] // n_latents)
    buffer = None
    if not triton_products.is_available(inputs):
        # Else parts of a sum may be added up in bfloat16.
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
        buffer = weights.extended.new_empty(min(n_rows, len(inputs)), n_latents)
    sides = screening_rows(inputs, weights.extended.shape[1])
    all_safe = bool(sides.is_safe.all())
    for rows, *of_rows in zip(inputs.split(n_rows), *(side.split(n_rows) for side in sides), strict=True):
        extended, norms, is_safe = of_rows
        room = None if buffer is None else buffer[: len(rows)]
        yield _Piece(rows, extended, norms if all_safe or is_safe.all() else None, room)


def _most_candidates(piece: _Piece, weights: ScreeningWeights) -> int:
    return int(_MOST_CANDIDATES * len(piece.rows) * len(weights.extended))


def _not_negative(piece: _Piece, weights: ScreeningWeights) -> Tensor | None:
    """Returns where the product is not negative, ascending; None where it is so at too many places."""
    most = _most_candidates(piece, weights)
    if piece.room is None:
        return triton_screening.reaching(piece.extended, weights.extended, None, most)
    return _few_not_negative(torch.mm(piece.extended, weights.extended.T, out=piece.room), most)


def _reaching_the_kth(piece: _Piece, weights: ScreeningWeights, k: int, n_groups: int) -> Tensor | None:
    """Returns where the product says that a row's `k` largest positive pre-latents may be; None for too many places."""
    assert piece.error_norms is not None
    most, errors = _most_candidates(piece, weights), piece.error_norms @ weights.largest_norms + weights.slack
    if piece.room is None:
        maxima = triton_screening.group_maxima(piece.extended, weights.extended, n_groups)
        return triton_screening.reaching(piece.extended, weights.extended, _row_bounds(maxima, k, errors), most)
    product = torch.mm(piece.extended, weights.extended.T, out=piece.room)
    group_size = product.shape[1] // n_groups
    maxima = product[:, : group_size * n_groups].view(-1, group_size, n_groups).amax(1)
    return _few_flat_ids(product >= _row_bounds(maxima, k, errors).bfloat16().unsqueeze(1), most)


def _row_bounds(maxima: Tensor, k: int, errors: Tensor) -> Tensor:
    """Returns what the product of each row's k largest positive pre-latents must reach [n_rows].

    Args:
        maxima: [n_rows, n_groups] of the product over disjoint groups of neurons.
        k: the number of neurons.
        errors: [n_rows] of the product.
    """
    # Rounding to bfloat16 may have moved both what is compared and what it is compared with.
    largest = maxima.topk(k, sorted=False).values.amin(1).float() * (1 - 2.0**-7)
    return ((largest - 2.1 * errors) * (1 - 2.0**-6)).clamp_min(_BELOW_ZERO)


def _few_not_negative(product: Tensor, most: int) -> Tensor | None:
    """Returns where a contiguous product is not negative, ascending; None where it is so at too many places.

    The product is overwritten by sign bits, set where it is not negative: four bfloat16 numbers in a word of 64 bits
    are looked at together.
    """
    if product.numel() % 4:
        return _few_flat_ids(product >= 0, most)
    words = product.view(-1).view(torch.int64).bitwise_and_(_FOUR_SIGNS).bitwise_xor_(_FOUR_SIGNS)
    found = _few_flat_ids(words.bool(), most)  # on the CPU several times faster than a comparison
    if found is None:
        return None
    return _within_words(found, words.index_select(0, found).view(torch.int16).view(-1, 4).bool())


def _few_flat_ids(mask: Tensor, most: int) -> Tensor | None:
    """Returns where a contiguous mask is true, ascending; None where it is so at more than `most` places."""
    mask = mask.view(-1)
    if mask.numel() % 8:
        flat_ids = mask.nonzero().squeeze(1)
    else:  # in words of eight, most of which hold none
        words = mask.view(torch.int64).nonzero().squeeze(1)
        if len(words) > most:
            return None
        flat_ids = _within_words(words, mask.view(-1, 8).index_select(0, words))
    return flat_ids if len(flat_ids) <= most else None


def _within_words(words: Tensor, mask: Tensor) -> Tensor:
    """Returns where the masks [n_words, size] of some words [n_words] are true, counted over all words.

    The size is a power of two.
    """
    if mask.is_cuda:
        places = mask.view(-1).nonzero().squeeze(1)
    else:  # of a short mask without many zeros NumPy is the faster
        places = torch.from_numpy(np.flatnonzero(mask.view(-1).numpy()))
    bits = mask.shape[1].bit_length() - 1
    return (words.index_select(0, places >> bits) << bits) + (places & mask.shape[1] - 1)


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
