"""Loss terms of sparse autoencoders."""

import torch.nn.functional as F
from torch import Tensor

from src.ops.sparse_latents import SparseLatents


def mean_squared_error(reconstruction: Tensor, inputs: Tensor) -> Tensor:
    """Returns the squared error averaged over rows and dimensions, both [n_rows, d_in].

    BatchTopK (Bussmann et al. 2024) and sae-1n average over both; dictionary_learning and SAELens sum over d_in.
    """
    return F.mse_loss(reconstruction, inputs)


def mean_l1(latents: SparseLatents) -> Tensor:
    """Returns the mean over rows of the sum of (non-negative) latents."""
    return latents.values.sum() / max(latents.n_rows, 1)


def auxk_loss(residual: Tensor, dead_pre_latents: Tensor, dead_atoms: Tensor, k_aux: int) -> Tensor:
    """AuxK: dead neurons learn to reconstruct what the living ones left (Gao et al. 2024, section A.2).

    Per row the `k_aux` largest of the dead neurons' ReLU'd pre-latents are decoded without a bias. The products are
    dense: there are as few columns as dead neurons, and of those a large share is kept.

    Args:
        residual: [n_rows, d_in], inputs minus reconstruction.
        dead_pre_latents: [n_rows, n_dead].
        dead_atoms: [n_dead, d_in], their decoder rows.
        k_aux: the most latents to keep per row.

    Returns:
        The squared error averaged over rows and dimensions.
    """
    latents = F.relu(dead_pre_latents)
    if k_aux < latents.shape[1]:
        largest, ids = latents.topk(k_aux, dim=1, sorted=False)
        latents = latents.new_zeros(latents.shape).scatter(1, ids, largest)
    return F.mse_loss(latents @ dead_atoms, residual)
