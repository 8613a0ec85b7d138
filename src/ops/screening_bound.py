"""A product in bfloat16 that is not negative wherever a float32 pre-latent could be above its threshold.

With x a row, w an encoder row, K terms in a sum:

- rounding to bfloat16, which has 8 significant bits, moves each factor by at most 2^-8 of itself, and so the product
  by at most (2^-7 + 2^-16) |x| |w| (Cauchy-Schwarz);
- sums of K float32 terms, in whatever order, are wrong by at most K 2^-24 times the sum of the terms' absolute values
  (Higham 2002, "Accuracy and stability of numerical algorithms", section 3.1), and by twice that on tensor cores, which
  cut off instead of rounding (Fasi et al. 2021, "Numerical behavior of NVIDIA tensor cores", section 4); the float32
  product that the result stands for rounds as well;
- numbers below 2^-126 may be flushed to zero: adding 2^-50 to both norms makes up for more than that.

The bound is itself a product of a number of the row and one of the neuron, and so are bias and threshold. Three more
columns on each side put them into the product, `[x, 1, 1, c |x|] @ [w, s_high, s_low, |w|].T` with s the bias less the
threshold in two bfloat16 parts: a pair whose pre-latent exceeds its threshold comes out not negative. That needs no
pass over the product but the one that looks at signs, and rounding the output does not change a sign.
"""

from typing import NamedTuple

import torch
from jaxtyping import BFloat16, Bool, Float
from torch import Tensor

from src.ops.shapes import Atoms, PerNeuron, Rows, Scalar
from src.ops.triton_screening import WIDTH_MULTIPLE

_TERMS = 1.02 * 1.5 * 2.0**-23  # both sums of float32; the factors in one of them have been rounded up to 2^-8
_SMALL = 2.0**-50
# Longer vectors could overflow in the product; they go to the float32 path.
_LARGE = 2.0**60
_MOST_TERMS = 1 << 15
_CPU_COLUMNS = 32  # widths that the CPU's bfloat16 product is fast for are multiples of it


def error_factor(n_terms: int) -> float:
    """Returns c: the two products of x and w differ by at most c |x| |w|."""
    return 2.0**-7 + 2.0**-16 + n_terms * _TERMS


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
    multiple = WIDTH_MULTIPLE if W_enc.is_cuda else _CPU_COLUMNS
    width = -(-(d_in + 3) // multiple) * multiple
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
