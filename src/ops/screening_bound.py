"""A product in bfloat16 that is not negative wherever a float32 pre-latent could be above its threshold.

With x a row, w an encoder row, x' and w' both rounded to bfloat16, and K terms in a sum:

- rounding moves the product of x and w by `(x - x') w + x' (w - w')`, at most `|x - x'| |w| + |x'| |w - w'|`
  (Cauchy-Schwarz). The differences are float32 numbers, so that their norms are known: they are about 0.4 of the most
  that 8 significant bits allow;
- sums of K float32 terms, in whatever order, are wrong by at most K 2^-24 times the sum of the terms' absolute values
  (Higham 2002, "Accuracy and stability of numerical algorithms", section 3.1), and by twice that on tensor cores, which
  cut off instead of rounding (Fasi et al. 2021, "Numerical behavior of NVIDIA tensor cores", section 4); the float32
  product that the result stands for rounds as well;
- numbers below 2^-126 may be flushed to zero, as may squares in a norm: adding 2^-50 to all norms makes up for more
  than that.

The bound is itself a sum of two products of a number of the row and one of the neuron, and bias and threshold are two
more. Four more columns on each side put them into the product, `[x', 1, 1, r, |x|] @ [w', s_high, s_low, |w|, q].T`
with s the bias less the threshold in two bfloat16 parts, q the norm of what rounding took from w, and r that of x with
what the sums add. A pair whose pre-latent exceeds its threshold comes out not negative. That needs no pass over the
product but the one that looks at signs, and rounding the output does not change a sign.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import BFloat16, Bool, Float
from torch import Tensor

from src.ops.shapes import Atoms, PerNeuron, Rows, Scalar
from src.ops.triton_screening import WIDTH_MULTIPLE

_TERMS = 1.02 * 1.5 * 2.0**-23  # both sums of float32; the factors in one of them have been rounded up to 2^-8
_SMALL = 2.0**-50
# For rounding both factors of the bound to bfloat16, for |x| in place of |x'|, and for the rounding of the norms.
_ROUNDED = 1 + 2.0**-6
# Longer vectors could overflow in the product; they go to the float32 path.
_LARGE = 2.0**60
_MOST_TERMS = 1 << 15
_CPU_COLUMNS = 32  # widths that the CPU's bfloat16 product is fast for are multiples of it
_COLUMNS = 4
# Of a block that is rounded and measured: on the CPU (2 MiB, in cache) and elsewhere, where it only bounds the memory.
_BLOCK_ELEMENTS = (1 << 19, 1 << 24)


def error_norms(norms: Float[Tensor, " n"], roundings: Float[Tensor, " n"], n_terms: int) -> Float[Tensor, "n 2"]:
    """Returns what the bound has to do with rows: products of x and w differ by at most its product with |w|, |w - w'|.

    Args:
        norms: |x| [n].
        roundings: |x - x'| [n].
        n_terms: of a sum.
    """
    return _ROUNDED * torch.stack([roundings + n_terms * _TERMS * norms + _SMALL, norms + _SMALL], dim=1)


class ScreeningWeights(NamedTuple):
    """The encoder's side of the screening product.

    Attributes:
        extended: [n_latents, width] bfloat16: W_enc and four columns, filled up with zeros.
        largest_norms: the largest norm of an encoder row and of its rounding as the bound takes them, [2].
        slack: the largest amount that was added to a bias for its own rounding, 0-d.
        is_safe: whether all is finite and small enough for the bound to hold.
    """

    extended: BFloat16[Tensor, "n_latents width"]
    largest_norms: Float[Tensor, "2"]
    slack: Scalar
    is_safe: bool


def screening_weights(W_enc: Atoms, b_enc: PerNeuron | None, threshold: Scalar | PerNeuron) -> ScreeningWeights:
    """Returns the encoder's side of the product for a threshold, 0-d or [n_latents]."""
    n_latents, d_in = W_enc.shape
    multiple = WIDTH_MULTIPLE if W_enc.is_cuda else _CPU_COLUMNS
    width = -(-(d_in + _COLUMNS) // multiple) * multiple
    bias = threshold.new_zeros(()) if b_enc is None else b_enc
    # For the rounding of this sum and of the two parts, and for their share in the rounding of the product.
    slack = (bias.abs() + threshold.abs()) * (2.0**-15 + 2 * width * _TERMS)
    shift = (bias - threshold + slack).expand(n_latents)
    extended = W_enc.new_empty(n_latents, width, dtype=torch.bfloat16)
    norms = torch.stack(_round_rows(W_enc, extended), dim=1) + _SMALL
    high = shift.bfloat16()
    extended[:, d_in] = high
    extended[:, d_in + 1] = shift - high
    extended[:, d_in + 2 : d_in + _COLUMNS] = norms
    extended[:, d_in + _COLUMNS :] = 0
    largest_norms = norms.amax(0)
    is_safe = width <= _MOST_TERMS and bool((largest_norms[0] < _LARGE) & (shift.abs().max() < _LARGE))
    return ScreeningWeights(extended, largest_norms, slack.max(), is_safe)


WeightsOf = Callable[[Tensor, Tensor | None, Tensor], ScreeningWeights]
"""`screening_weights`, or what remembers them."""


def remembered_weights() -> WeightsOf:
    """Returns a `screening_weights` for an encoder that does not change: it works anew for another threshold only."""
    last: tuple[Tensor, ScreeningWeights] | None = None

    def weights_of(W_enc: Tensor, b_enc: Tensor | None, threshold: Tensor) -> ScreeningWeights:
        nonlocal last
        if last is None or not torch.equal(last[0], threshold):
            last = threshold.clone(), screening_weights(W_enc, b_enc, threshold)
        return last[1]

    return weights_of


class ScreeningRows(NamedTuple):
    """The activations' side of the screening product.

    Attributes:
        extended: [n_rows, width] bfloat16.
        error_norms: [n_rows, 2], what the bound has to do with a row.
        is_safe: [n_rows], whether the bound holds; not for rows with values that are not finite, or are huge.
    """

    extended: BFloat16[Tensor, "n_rows width"]
    error_norms: Float[Tensor, "n_rows 2"]
    is_safe: Bool[Tensor, " n_rows"]


def screening_rows(inputs: Rows, width: int) -> ScreeningRows:
    """Returns the activations' side of the product."""
    n_rows, d_in = inputs.shape
    extended = inputs.new_empty(n_rows, width, dtype=torch.bfloat16)
    norms, roundings = _round_rows(inputs, extended)
    errors = error_norms(norms, roundings, width)
    extended[:, d_in : d_in + 2] = 1
    extended[:, d_in + 2 : d_in + _COLUMNS] = errors
    extended[:, d_in + _COLUMNS :] = 0
    return ScreeningRows(extended, errors, norms < _LARGE)


def _round_rows(rows: Rows, out: BFloat16[Tensor, "n_rows _"]) -> tuple[Tensor, Tensor]:
    """Rounds rows [n_rows, d_in] into the first columns of `out`; returns their norms and those of what that took."""
    d_in = rows.shape[1]
    norms, roundings = rows.new_empty(len(rows)), rows.new_empty(len(rows))
    n_rows = max(1, min(_BLOCK_ELEMENTS[rows.is_cuda] // d_in, len(rows)))
    room = rows.new_empty(n_rows, d_in)
    for start in range(0, len(rows), n_rows):
        block = slice(start, min(start + n_rows, len(rows)))
        rounded = out[block, :d_in].copy_(rows[block])
        torch.linalg.vector_norm(rows[block], dim=1, out=norms[block])
        lost = room[: len(rounded)].copy_(rounded).sub_(rows[block])
        torch.linalg.vector_norm(lost, dim=1, out=roundings[block])
    return norms, roundings
