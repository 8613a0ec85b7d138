"""Names of folders that follow from configuration values."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from src.files import digest_text


def folder_name(folder: str | None) -> str:
    """Returns a run name for a folder: its name and six hex digits of its resolved path."""
    if not folder:
        return "unnamed"
    path = os.path.realpath(Path(folder).expanduser())  # Path.resolve raises on links that lead to themselves
    return f"{os.path.basename(path)}_{digest_text(path, 6)}"


def patches_folder(tile: Mapping[str, Any]) -> str:
    """Names a folder of patches by how they are cut: `patches_256_level1`, `patches_256_0.5mpp_step128`."""
    scale = f"level{tile['patch_level']}" if tile["mpp"] is None else f"{tile['mpp']}mpp"
    step = "" if tile["step"] in (None, tile["patch_size"]) else f"_step{tile['step']}"
    return f"patches_{tile['patch_size']}_{scale}{step}"


def features_folder(
    backbone: Mapping[str, Any], tile: Mapping[str, Any] | None = None, layer: int | str | None = None
) -> str:
    """Names a folder of activations by the place in the model and its input: `features_resnet50_layer3_mean_224px_...`.

    Where the backbone computes none, the folder comes from elsewhere and has the backbone's name alone.

    Args:
        backbone: the config node. Several layers are joined by `+`.
        tile: how slides are cut; None where images are not.
        layer: names the folder that this layer alone would have; `backbone.layer` when None.
    """
    name = f"features_{backbone['name']}"
    if "_target_" not in backbone:
        return name
    parts = [name]
    layers = backbone.get("layer") if layer is None else layer
    if isinstance(layers, Sequence) and not isinstance(layers, str):
        layers = "+".join("output" if one is None else str(one) for one in layers)
    if layers not in (None, "output"):
        parts.append(f"layer{layers}")
    tokens = backbone.get("tokens", "pooled")
    if len(parts) > 1 or tokens != "pooled":
        parts.append(tokens)
    size = backbone["image_size"]
    parts.append(f"{size}px" if isinstance(size, int) else f"{'x'.join(map(str, size))}px")
    if tile is not None:
        parts.append(patches_folder(tile).removeprefix("patches_"))
    return "_".join(parts)
