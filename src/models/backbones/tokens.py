"""What models give, as tokens [batch, n_tokens, d]: sequences as they are, maps position by position."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from src.models.backbones.spec import POOLED

TOKENS = ("cls", "patch", "all", "mean", "cls_mean", "pooled", "projected")


def to_tokens(native: Float[Tensor, "batch ..."], channels_last: bool) -> Float[Tensor, "batch n_tokens d"]:
    """Returns tokens of a sequence [batch, n_tokens, d] or of a map, row by row.

    Args:
        native: a sequence; or a map [batch, d, rows, columns].
        channels_last: a map is [batch, rows, columns, d], as Swin's are.
    """
    if native.ndim == 3:
        return native
    return native.flatten(1, 2) if channels_last else native.flatten(2).transpose(1, 2)


def from_tokens(
    tokens: Float[Tensor, "batch n_tokens d"], shape: tuple[int, ...], channels_last: bool
) -> Float[Tensor, "batch ..."]:
    """Returns what `to_tokens` was given.

    Args:
        tokens: [batch, n_tokens, d].
        shape: of one image's sequence or map.
        channels_last: see `to_tokens`.
    """
    if len(shape) == 2:
        return tokens
    return (tokens if channels_last else tokens.transpose(1, 2)).reshape(len(tokens), *shape)


def pick(
    tokens: Float[Tensor, "batch n_tokens d"], what: str, n_prefix: int
) -> Float[Tensor, "batch n_picked d_picked"]:
    """Returns the class token, the patch tokens, all tokens, the patch tokens' mean, or that beside the class token.

    Args:
        tokens: class and register tokens first, then those of the patches.
        what: `cls`, `patch`, `all`, `mean` or `cls_mean`, which is twice as wide (Vorontsov et al. 2024, Virchow).
        n_prefix: how many come before the patches.
    """
    if what == "cls":
        return tokens[:, :1]
    if what == "all":
        return tokens
    patches = tokens[:, n_prefix:]
    if what == "patch":
        return patches
    mean = patches.mean(dim=1, keepdim=True)
    return torch.cat([tokens[:, :1], mean], dim=-1) if what == "cls_mean" else mean


def find_grid(n_patches: int, size: tuple[int, int]) -> tuple[int, int]:
    """Returns rows and columns of a sequence of patch tokens whose patches are square.

    Args:
        n_patches: their number.
        size: height and width of the image in pixels.

    Raises:
        ValueError: when no grid of the image's aspect has that many.
    """
    rows = max(1, round(math.sqrt(n_patches * size[0] / size[1])))
    if n_patches % rows:
        raise ValueError(
            f"Expected {n_patches} patch tokens of an image of {size[0]}x{size[1]} pixels to form a grid, got a rest "
            f"of {n_patches % rows} at {rows} rows. Give a backbone.image_size that is a multiple of the patch size."
        )
    return rows, n_patches // rows


def n_picked(n_tokens: int, what: str, n_prefix: int) -> int:
    """Returns how many tokens `pick` gives; 1 of what the model pools itself."""
    if what in POOLED:
        return 1
    return n_tokens if what == "all" else n_tokens - n_prefix
