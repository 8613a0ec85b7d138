"""Names of folders that follow from configuration values."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from src.files import digest_text

T = TypeVar("T")


def computes_activations(backbone: Mapping[str, Any]) -> bool:
    """Whether a configured backbone computes activations, rather than standing for files that others made.

    It does where it names a class, but for one whose `pretrained` and `checkpoint` are null: encoders with which others
    have extracted features (CONCH) are configured so, and compute once a file or an id of the hub is given. Random
    weights are asked for by `pretrained: false` or a `seed`.

    Args:
        backbone: the config node.
    """
    if "_target_" not in backbone:
        return False
    names_weights = backbone.get("checkpoint") is not None or backbone.get("pretrained", True) is not None
    return names_weights or "seed" in backbone


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
    if not computes_activations(backbone):
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


def split_seed(shuffle: str, repeat: int) -> int:
    """Returns the seed of a repeat's folds: its number, from 42 on where published folds are made again."""
    return repeat + (42 if shuffle == "legacy" else 0)


def splits_folder(splits: Mapping[str, Any]) -> str:
    """Names a folder of folds: `<n_folds>_<seed>`, and how they are drawn when not by default."""
    name = "" if splits["name"] == "default" else f"_{splits['name']}"
    return f"{splits['n_folds']}_{splits['seed']}{name}"


def repeated_folder(folder: str, repeat: int) -> str:
    """Names the folder of a repeat's folds beside that of repeat 0, which has the name itself."""
    return f"{folder}_repeat_{repeat}" if repeat else folder


def part_folder(part: str) -> str:
    """Names what belongs to a part of a large set: `part_3_of_16` for `3/16`."""
    number, total = _parse_part(part)
    return f"part_{number}_of_{total}"


def part_of(part: str | None, items: Sequence[T]) -> Sequence[T]:
    """Returns the items of a part, of nearly equal size and in order; all for None.

    Args:
        part: `3/16` for the third of sixteen.
        items: of the whole set.

    Raises:
        ValueError: when the part is written otherwise, or does not exist.
    """
    if part is None:
        return items
    number, total = _parse_part(part)
    return items[len(items) * (number - 1) // total : len(items) * number // total]


def _parse_part(part: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", str(part))
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise ValueError(f"Expected a part such as 1/16 to 16/16, got {part!r}.")
    return int(match[1]), int(match[2])
