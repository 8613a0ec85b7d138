"""How alike the atoms of a decoder are."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Int64
from scipy.stats import beta
from torch import Tensor

from src.ops.shapes import Atoms, PerNeuron
from src.progress import track

# Of the block of cosines: 341 rows of 49,152.
_BLOCK_BYTES = 1 << 26


class NearestAtoms(NamedTuple):
    """Each atom's nearest other one: its neuron_id and the signed cosine with it, both [n_latents]."""

    neuron_id: Int64[Tensor, " n_latents"]
    cosine: PerNeuron


@torch.no_grad()
def nearest_atoms(atoms: Atoms, block_bytes: int = _BLOCK_BYTES) -> NearestAtoms:
    """Finds for each atom the other one whose cosine with it is largest in absolute value.

    The mean over atoms of the absolute cosine is the mean max cosine similarity (Sharkey et al. 2022) of a dictionary
    with itself. Antipodal pairs count as alike: one direction is spent twice. An atom without length has cosine 0 with
    all others. Cosines are made in blocks of rows, so that memory does not grow with the square of the atoms.

    Args:
        atoms: [n_latents, d_in], the decoder's rows.
        block_bytes: memory of a block.

    Raises:
        ValueError: when there are fewer than two atoms.
    """
    n_latents = len(atoms)
    if n_latents < 2:
        raise ValueError(f"Expected at least two atoms to compare, got {n_latents}.")
    norms = atoms.norm(dim=1)
    inverse = torch.where(norms > 0, norms.reciprocal(), 0)
    n_rows = min(n_latents, max(1, block_bytes // (n_latents * atoms.element_size())))
    # One block for all: fresh ones of this size leave holes in the heap that nothing fits in, gigabytes in the end.
    block = atoms.new_empty(n_rows, n_latents)
    neuron_ids, cosines = torch.empty_like(norms, dtype=torch.int64), torch.empty_like(norms)
    for start in track(range(0, n_latents, n_rows), "Comparing atoms"):
        chosen = slice(start, start + n_rows)
        rows = atoms[chosen] * inverse[chosen, None]
        products = torch.mm(rows, atoms.T, out=block[: len(rows)]).mul_(inverse).abs_()
        products.diagonal(start).fill_(-1)
        nearest = torch.argmax(products, 1, out=neuron_ids[chosen])
        cosines[chosen] = ((rows * atoms[nearest]).sum(1) * inverse[nearest]).clamp(-1, 1)
    return NearestAtoms(neuron_ids, cosines)


def random_nearest_cosine(n_atoms: int, d_in: int) -> float:
    """Returns the median over random directions of the largest |cosine| with another one: what chance alone gives.

    The squared cosine of two is Beta(1/2, (d_in - 1)/2), and the largest of n - 1 is below x with the (n - 1)th power
    of the probability that one is.
    """
    return math.sqrt(beta.ppf(0.5 ** (1 / (n_atoms - 1)), 0.5, (d_in - 1) / 2)) if d_in > 1 else 1.0
