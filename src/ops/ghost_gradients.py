"""Ghost gradients: dead neurons learn from the residual through an exponential."""

import torch
from jaxtyping import Float
from torch import Tensor

from src.ops.dense_products import matmul
from src.ops.losses import mean_of_elements
from src.ops.shapes import Rows, Scalar

# Exponents above it would overflow; of the PatchSAE copy, CytoSAE has no bound.
_LARGEST_EXPONENT = 20.0
_EPS = 1e-6


def ghost_loss(
    dead_pre_latents: Float[Tensor, "n_rows n_dead"],
    dead_atoms: Float[Tensor, "n_dead d_in"],
    residual: Rows,
    errors: Rows,
) -> Scalar:
    """Returns PatchSAE's ghost-gradient term (after Jermyn and Templeton 2024).

    Dead neurons' `exp(pre-latents)` are decoded, scaled to half the residual's norm, and compared with the residual;
    each element of that error is then scaled to the value of the main error's element, so that the term weighs as
    much as the main error, and only its gradient tells something.

    Args:
        dead_pre_latents: [n_rows, n_dead]; carries the gradient.
        dead_atoms: [n_dead, d_in]; carries the gradient.
        residual: [n_rows, d_in], inputs minus reconstruction; taken as a constant.
        errors: [n_rows, d_in], the elements whose mean is the main error; taken as constants.
    """
    residual, errors = residual.detach(), errors.detach()
    ghosts = matmul(dead_pre_latents.clamp_max(_LARGEST_EXPONENT).exp(), dead_atoms)
    residual_norms = torch.linalg.vector_norm(residual, dim=-1, keepdim=True)
    with torch.no_grad():
        scale = residual_norms / (_EPS + 2 * torch.linalg.vector_norm(ghosts, dim=-1, keepdim=True))
    ghost_errors = (ghosts * scale - residual).square() / residual_norms.clamp_min(_EPS)
    weights = (errors / (ghost_errors + _EPS)).detach()
    return mean_of_elements(weights * ghost_errors)
