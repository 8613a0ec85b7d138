"""The spec of the activations that a configured backbone gives, known without loading it."""

import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from src.activation_spec import UNKNOWN, ActivationSpec
from src.files import digest_file

# ImageNet's, as timm and torchvision have them.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGE_SIZE, INTERPOLATION = 224, "bicubic"
_DIGEST_LENGTH = 12


def configured_spec(backbone: Mapping[str, Any], tile: Mapping[str, Any] | None = None) -> ActivationSpec:
    """Returns what a configuration says of the activations that it reads or makes.

    Args:
        backbone: the config node. One that computes no activations (`none`, or those whose features come from
            elsewhere) leaves the spec unknown.
        tile: how slides are cut; None where images are not.

    Returns:
        The spec. A layer counted from the end is unknown: the model tells which it is.
    """
    if "_target_" not in backbone:
        return ActivationSpec()
    layer, size = backbone.get("layer"), backbone.get("image_size", IMAGE_SIZE)
    tokens = "pooled" if layer is None else f"pooled {backbone.get('pooling', 'avg')}"
    if backbone.get("project") is not None:
        tokens += ", projected" if backbone["project"] else ""
    return ActivationSpec(
        model=str(backbone["model_name"]),
        weights=describe_weights(backbone),
        layer="output" if layer is None else str(layer) if layer >= 0 else UNKNOWN,
        tokens=tokens,
        grid="1x1",
        transform=describe_transform(
            size,
            backbone.get("interpolation", INTERPOLATION),
            backbone.get("mean", MEAN),
            backbone.get("std", STD),
            backbone.get("normalize_each", False),
        ),
        input_size=f"{size}x{size}",
        patch_size="none" if tile is None else str(tile["patch_size"]),
        mpp="none" if tile is None else describe_scale(tile),
    )


def describe_transform(
    image_size: int, interpolation: str, mean: Sequence[float], std: Sequence[float], normalize_each: bool
) -> str:
    """Returns the preprocessing in words: the same encoder at another size or scaling gives other activations."""
    scaling = "each image's own mean and std" if normalize_each else f"mean {list(mean)}, std {list(std)}"
    return f"resize {image_size} {interpolation}, {scaling}"


def describe_scale(tile: Mapping[str, Any]) -> str:
    """Returns at which resolution patches are cut: micrometres a pixel, or the level of the slide."""
    return f"level {tile['patch_level']}" if tile.get("mpp") is None else f"{tile['mpp']:g}"


def describe_weights(backbone: Mapping[str, Any]) -> str:
    """Returns the digest of a weights file, `published <tag>`, or the seed of random weights.

    Unknown where the file is not there: activations that were made with it can still be read.
    """
    pretrained = backbone.get("pretrained")
    path = backbone.get("checkpoint") or (pretrained if isinstance(pretrained, str) else None)
    if path is not None and Path(path).is_file():
        status = os.stat(path)
        return _digest(str(path), status.st_size, status.st_mtime_ns)
    if backbone.get("checkpoint") is not None:
        return UNKNOWN
    if pretrained:
        return "published" if pretrained is True else f"published {pretrained}"
    return f"random, seed {backbone.get('seed', 0)}"


@functools.cache
def _digest(path: str, n_bytes: int, time: int) -> str:  # noqa: ARG001 another size or time is another file
    return digest_file(path)[:_DIGEST_LENGTH]
