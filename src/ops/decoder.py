"""The unit-norm constraint on decoder atoms: rows on the sphere, gradients along it."""

import torch

from src.ops.shapes import Atoms

# A dot product makes the products of its elements first; in pieces they stay in cache (5 times faster at 49152 x 768).
_CPU_PIECE_ROWS = 1024


@torch.no_grad()
def normalize_rows_(atoms: Atoms) -> Atoms:
    """Scales every atom (row of [n_latents, d_in]) to unit L2 norm, in place; a zero row stays zero."""
    norms = torch.linalg.vector_norm(atoms, dim=1, keepdim=True)
    return atoms.div_(norms.clamp_min(torch.finfo(atoms.dtype).tiny))


@torch.no_grad()
def project_gradient_(gradient: Atoms, atoms: Atoms, *, is_unit_norm: bool = True) -> Atoms:
    """Removes from each row of a gradient its part along the atom, in place (Bricken et al. 2023).

    Adam would otherwise spend its moments on a change of length that the constraint undoes.

    Args:
        gradient: [n_latents, d_in].
        atoms: [n_latents, d_in].
        is_unit_norm: whether the atoms are known to be of unit norm, which saves a pass over them.
    """
    n_rows = _CPU_PIECE_ROWS if gradient.device.type == "cpu" else max(len(gradient), 1)
    for piece, directions in zip(gradient.split(n_rows), atoms.split(n_rows), strict=True):
        along = torch.linalg.vecdot(piece, directions).unsqueeze(1)
        if not is_unit_norm:
            squares = torch.linalg.vecdot(directions, directions).unsqueeze(1)
            along /= squares.clamp_min(torch.finfo(atoms.dtype).tiny)
        piece.addcmul_(along, directions, value=-1)
    return gradient
