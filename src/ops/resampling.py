"""Resampling: dead neurons are given the direction of inputs that the SAE reconstructs badly."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from src.ops.shapes import Atoms, PerNeuron

# The new encoder row's length, as a share of the living rows' mean length (Bricken et al. 2023).
_ENCODER_SHARE = 0.2


@torch.no_grad()
def draw_rows(errors: Float[Tensor, " n_rows"], n_wanted: int, seed: int) -> Int64[Tensor, " n_drawn"]:
    """Draws rows without replacement, with probability proportional to their errors.

    Args:
        errors: [n_rows], not negative: a row's residual norm (dictionary_learning) or its square (Bricken et al. 2023,
            DN-CBM).
        n_wanted: the most rows to draw.
        seed: of the draw; the optimizer step, so that a resumed training draws the same.

    Returns:
        Row ids; no more than there are rows with an error.
    """
    n_drawn = min(n_wanted, int((errors > 0).sum()))
    if n_drawn == 0:
        return torch.empty(0, dtype=torch.int64, device=errors.device)
    generator = torch.Generator().manual_seed(seed)
    return torch.multinomial(errors.cpu().double(), n_drawn, generator=generator).to(errors.device)


@torch.no_grad()
def resample_(
    W_enc: Atoms,
    b_enc: PerNeuron,
    W_dec: Atoms,
    dead: Int64[Tensor, " n_resampled"],
    inputs: Float[Tensor, "n_resampled d_in"],
    *,
    unit_encoder_rows: bool,
) -> None:
    """Points neurons at inputs, in place.

    A neuron's atom becomes the input's direction and its bias 0. Its encoder row becomes the input times 0.2 times the
    mean length of the living neurons' rows: of unit length first with `unit_encoder_rows` (Bricken et al. 2023,
    DN-CBM), as it is without (dictionary_learning).

    Args:
        W_enc: [n_latents, d_in].
        b_enc: [n_latents].
        W_dec: [n_latents, d_in].
        dead: [n_resampled], neuron ids.
        inputs: [n_resampled, d_in], an input for each of them.
        unit_encoder_rows: whether inputs are scaled to unit length for the encoder too.
    """
    norms = torch.linalg.vector_norm(inputs, dim=1, keepdim=True)
    directions = inputs / norms.clamp_min(torch.finfo(inputs.dtype).tiny)
    alive = torch.ones(len(W_enc), dtype=torch.bool, device=W_enc.device)
    alive[dead] = False
    length = torch.linalg.vector_norm(W_enc[alive], dim=1).mean() if bool(alive.any()) else W_enc.new_ones(())
    W_enc[dead] = (directions if unit_encoder_rows else inputs) * (length * _ENCODER_SHARE)
    W_dec[dead] = directions
    b_enc[dead] = 0


@torch.no_grad()
def forget_moments_(
    optimizer: torch.optim.Optimizer, parameter: Float[Tensor, " n_latents ..."], rows: Int64[Tensor, " n_resampled"]
) -> None:
    """Sets Adam's moments of some rows of a parameter to 0, in place."""
    state = optimizer.state[parameter]
    for name in ("exp_avg", "exp_avg_sq"):
        state[name][rows] = 0
