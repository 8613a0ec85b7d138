"""Normalisation of each row by its own statistics, which decoding undoes."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

# The guard of sae-1n, SAELens and openai/sparse_autoencoder against a constant row; nn.LayerNorm's too.
ROW_NORM_EPS = 1e-5


class RowStatistics(NamedTuple):
    """What was taken from each row and is put back: mean and scale, both [n_rows, 1]."""

    mean: Float[Tensor, "n_rows 1"]
    scale: Float[Tensor, "n_rows 1"]


def z_score_rows(rows: Float[Tensor, "n_rows d"]) -> tuple[Float[Tensor, "n_rows d"], RowStatistics]:
    """Subtracts each row's mean and divides by its standard deviation (ddof 1) plus 1e-5, for rows [n_rows, d].

    This is what sae-1n calls unit norm and SAELens and openai/sparse_autoencoder layer norm.
    """
    mean = rows.mean(1, keepdim=True)
    centred = rows - mean
    # As centred.std(1), which warns of rows of one element and of none.
    n_free = max(rows.shape[1] - 1, 1)
    scale = torch.linalg.vector_norm(centred, dim=1, keepdim=True) / math.sqrt(n_free) + ROW_NORM_EPS
    return centred / scale, RowStatistics(mean, scale)


def layer_norm_rows(rows: Float[Tensor, "n_rows d"]) -> tuple[Float[Tensor, "n_rows d"], RowStatistics]:
    """Layer norm as torch and ViT blocks define it: variance with ddof 0, 1e-5 added to it, for rows [n_rows, d]."""
    mean = rows.mean(1, keepdim=True)
    centred = rows - mean
    scale = (centred.square().mean(1, keepdim=True) + ROW_NORM_EPS).sqrt()
    return centred / scale, RowStatistics(mean, scale)
