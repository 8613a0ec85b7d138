"""Names of folders that follow from configuration values."""

import os
from collections.abc import Mapping
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
    """Names a folder of patches by how they are cut: `patches_256_level1`, `patches_256_0.5mpp_step128_<tile>`."""
    scale = f"level{tile['patch_level']}" if tile.get("mpp") is None else f"{tile['mpp']}mpp"
    step = "" if tile["step"] in (None, tile["patch_size"]) else f"_step{tile['step']}"
    name = tile.get("name", "default")
    method = "" if name == "default" else f"_{name}"
    return f"patches_{tile['patch_size']}_{scale}{step}{method}"


def features_folder(backbone: Mapping[str, Any], tile: Mapping[str, Any]) -> str:
    """Names a folder of activations by the place in the model and its input: `features_resnet50_layer3_avg_224px_...`.

    Where the backbone computes none, the folder comes from elsewhere and has the backbone's name alone.
    """
    name = f"features_{backbone['name']}"
    if "_target_" not in backbone:
        return name
    layer = backbone.get("layer")
    place = "" if layer is None else f"_layer{layer}_{backbone.get('pooling')}"
    return f"{name}{place}_{backbone['image_size']}px_{patches_folder(tile).removeprefix('patches_')}"
