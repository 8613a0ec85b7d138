"""The spec of the activations that a configured backbone gives, known without loading it."""

import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from src.activation_spec import UNKNOWN, ActivationSpec
from src.files import digest_file, digest_text
from src.folder_names import computes_activations

OUTPUT = "output"
"""The canonical name of the layer None: after the model's last norm or convolution, before its pooling."""
# ImageNet's, as timm and torchvision have them.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGE_SIZE, INTERPOLATION, RESIZE, CROP_PCT, INTENSITY = 224, "bicubic", "stretch", 0.875, "full"
POOLED = ("cls", "mean", "cls_mean", "pooled", "projected")
"""The values of `tokens` that give one row an image."""
_DIGEST_LENGTH = 12
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")


def configured_spec(
    backbone: Mapping[str, Any], tile: Mapping[str, Any] | None = None, layer: int | str | None = None
) -> ActivationSpec:
    """Returns what a configuration says of the activations that it reads or makes.

    Args:
        backbone: the config node. One that computes no activations (`none`, or those whose features come from
            elsewhere) leaves the spec unknown.
        tile: how slides are cut; None where images are not.
        layer: which of a list of layers; `backbone.layer` itself when None.

    Returns:
        The spec. A layer that is counted from the end or named, several layers, and the grid of patch tokens are
        unknown: the model tells.
    """
    if not computes_activations(backbone):
        return ActivationSpec()
    layer = backbone.get("layer") if layer is None else layer
    tokens = str(backbone.get("tokens", "pooled"))
    height, width = size_pair(backbone.get("image_size", IMAGE_SIZE))
    return ActivationSpec(
        model=str(backbone["model_name"]),
        weights=describe_weights(backbone),
        layer=_configured_layer(layer),
        tokens=tokens,
        grid="1x1" if tokens in POOLED else UNKNOWN,
        transform=describe_transform(
            (height, width),
            backbone.get("interpolation", INTERPOLATION),
            backbone.get("mean", MEAN),
            backbone.get("std", STD),
            backbone.get("normalize_each", False),
            backbone.get("resize", RESIZE),
            backbone.get("crop_pct", CROP_PCT),
            backbone.get("intensity", INTENSITY),
        ),
        input_size=f"{height}x{width}",
        patch_size="none" if tile is None else str(tile["patch_size"]),
        mpp="none" if tile is None else describe_scale(tile),
    )


def _configured_layer(layer: Any) -> str:
    if layer is None or layer == OUTPUT:
        return OUTPUT
    if isinstance(layer, int | str) and str(layer).isdecimal():
        return str(int(layer))
    return UNKNOWN


def size_pair(image_size: int | Sequence[int]) -> tuple[int, int]:
    """Returns height and width of an `image_size`: one edge of a square, or both.

    Raises:
        ValueError: when it is neither.
    """
    if isinstance(image_size, int):
        return image_size, image_size
    if len(image_size) != 2:
        raise ValueError(f"Expected backbone.image_size to be one number or [height, width], got {list(image_size)}.")
    return int(image_size[0]), int(image_size[1])


def describe_transform(
    size: tuple[int, int],
    interpolation: str,
    mean: Sequence[float],
    std: Sequence[float],
    normalize_each: bool,
    resize: str = RESIZE,
    crop_pct: float = CROP_PCT,
    intensity: str = INTENSITY,
) -> str:
    """Returns the preprocessing in words: the same encoder at another size or scaling gives other activations."""
    edge = str(size[0]) if size[0] == size[1] else f"{size[0]}x{size[1]}"
    way = {"crop": f", centre crop of {crop_pct:g}", "pad": " of the image in a black square"}.get(resize, "")
    extent = "" if intensity == "full" else "each image from its least to its largest value, "
    scaling = "each image's own mean and std" if normalize_each else f"mean {list(mean)}, std {list(std)}"
    return f"resize {edge} {interpolation}{way}, {extent}{scaling}"


def describe_scale(tile: Mapping[str, Any]) -> str:
    """Returns at which resolution patches are cut: micrometres a pixel, or the level of the slide."""
    return f"level {tile['patch_level']}" if tile.get("mpp") is None else f"{tile['mpp']:g}"


def describe_weights(backbone: Mapping[str, Any]) -> str:
    """Returns the digest of a weights file or folder, `published <tag>`, or the seed of random weights.

    Unknown where the file is not there: activations that were made with it can still be read.
    """
    pretrained = backbone.get("pretrained")
    path = backbone.get("checkpoint") or (pretrained if isinstance(pretrained, str) else None)
    if path is not None and Path(path).exists():
        files = [Path(path)]
        if Path(path).is_dir():
            files = sorted(file for file in Path(path).iterdir() if file.suffix in WEIGHT_SUFFIXES)
        digests = [_digest_unchanged(file) for file in files]
        return digests[0] if len(digests) == 1 else digest_text(" ".join(digests), _DIGEST_LENGTH)
    if backbone.get("checkpoint") is not None:
        return UNKNOWN
    if pretrained:
        return "published" if pretrained is True else f"published {pretrained}"
    return f"random, seed {backbone.get('seed', 0)}"


def word_weights(backbone: Mapping[str, Any]) -> str:
    """Returns what weights are, for the report: without folders, which may change."""
    source = backbone.get("checkpoint") or backbone.get("pretrained")
    if not source:
        return f"random weights (seed {backbone.get('seed', 0)})"
    if source is True:
        return "published weights"
    return f"the weights in {Path(source).name}" if Path(source).exists() else f"published weights {source}"


def _digest_unchanged(path: Path) -> str:
    status = os.stat(path)
    return _digest(str(path), status.st_size, status.st_mtime_ns)


@functools.cache
def _digest(path: str, n_bytes: int, time: int) -> str:  # noqa: ARG001 another size or time is another file
    return digest_file(path)[:_DIGEST_LENGTH]
