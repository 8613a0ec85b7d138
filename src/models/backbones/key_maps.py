"""The keys of published weights files in those of the models that we load them into, one function a family.

What is not of the image tower (text towers, heads of the training) is left out by name, so that anything else that a
file holds is still refused. A file of another family passes unchanged, and is refused by its keys.
"""

from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = dict[str, Tensor]


def conch_tower_keys(weights: Mapping[str, Tensor], grid: tuple[int, int]) -> Weights:
    """Returns the keys of `ConchTower` for those of MahmoodLab's files of CONCH v1 and v1.5.

    v1: `visual.` holds the image tower, whose features @ `proj_contrast` are the projection. v1.5: its pooling has no
    biases, and keys and values in one matrix; its position embeddings are fitted to the grid.

    Args:
        weights: of the file.
        grid: rows and columns of patches at the model's input size.
    """
    own = _below(weights, "visual.", others=("text.", "text_decoder.", "logit_scale"))
    own = _without(own, ("attn_pool_caption.", "ln_caption."))
    pool = "attn_pool_contrast."
    if (projection := own.pop("proj_contrast", None)) is not None:
        own["projection_head.weight"] = projection.T
    if f"{pool}to_kv.weight" in own:
        query, out = own.pop(f"{pool}to_q.weight"), own.pop(f"{pool}to_out.weight")
        key, value = own.pop(f"{pool}to_kv.weight").chunk(2)
        names = ("q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight")
        own |= {f"{pool}attn.{name}": one for name, one in zip(names, (query, key, value, out), strict=True)}
        own[f"{pool}attn.in_proj_bias"] = query.new_zeros(3 * len(query))
        own[f"{pool}attn.out_proj.bias"] = query.new_zeros(len(query))
        if "trunk.pos_embed" in own:
            own["trunk.pos_embed"] = _fit_positions(own["trunk.pos_embed"], grid)
    return own


def _below(weights: Mapping[str, Tensor], prefix: str, others: Iterable[str]) -> Weights:
    """Returns what lies below a prefix, without it, and all that lies elsewhere; `others`, named, are left out."""
    if not any(key.startswith(prefix) for key in weights):
        return dict(weights)
    return {key.removeprefix(prefix): value for key, value in _without(weights, others).items()}


def _without(weights: Mapping[str, Tensor], prefixes: Iterable[str]) -> Weights:
    return {key: value for key, value in weights.items() if not key.startswith(tuple(prefixes))}


def _fit_positions(positions: Tensor, grid: tuple[int, int]) -> Tensor:
    """Returns position embeddings [1, 1 + n, d] of a square grid for another grid.

    As DINO and TITAN do in their forward passes: bicubic by the ratio of the sides, to which they add a tenth of a
    patch against rounding; it also shifts what is sampled a little, which is why it is done here too.
    """
    side = round((positions.shape[1] - 1) ** 0.5)
    if (side, side) == tuple(grid):
        return positions
    square = positions[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    scale = ((grid[0] + 0.1) / side, (grid[1] + 0.1) / side)
    fitted = F.interpolate(square.float(), scale_factor=scale, mode="bicubic")
    return torch.cat([positions[:, :1], fitted.flatten(2).transpose(1, 2).to(positions.dtype)], dim=1)
