"""How alike the atoms of a decoder are."""

from typing import NamedTuple

import torch
from torch import Tensor

from src.progress import track

# Of one block of cosines: with 49,152 atoms 64 MiB.
_BLOCK_BYTES = 1 << 26


class NearestAtoms(NamedTuple):
    """Each atom's nearest other one: its neuron_id and the signed cosine with it, both [n_latents]."""

    neuron_id: Tensor
    cosine: Tensor


@torch.no_grad()
def nearest_atoms(atoms: Tensor, block_bytes: int = _BLOCK_BYTES) -> NearestAtoms:
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
    n_rows = max(1, block_bytes // (n_latents * atoms.element_size()))
    neuron_ids, cosines = [], []
    for start in track(range(0, n_latents, n_rows), "Comparing atoms"):
        rows = atoms[start : start + n_rows] * inverse[start : start + n_rows, None]
        products = rows @ atoms.T
        block = products.mul_(inverse).abs_()
        block.diagonal(start).fill_(-1)
        nearest = block.argmax(1)
        neuron_ids.append(nearest)
        cosines.append(((rows * atoms[nearest]).sum(1) * inverse[nearest]).clamp(-1, 1))
    return NearestAtoms(torch.cat(neuron_ids), torch.cat(cosines))
