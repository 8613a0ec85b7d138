"""Puts published weights, from a file or from the hub, into a model that was made without them."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from src.models.backbones.weights import fetch_weights, load_weights, read_weights

_FILES_ON_HUB = (
    "model.safetensors",
    "pytorch_model.bin",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
)


def require_checkpoint(part: str, checkpoint: str | None, pretrained: bool | str | None) -> None:
    """Refuses published weights that lack a part of the model, which would stay random without a word.

    Raises:
        ValueError: when `pretrained` names weights, and no `checkpoint` goes before them.
    """
    if checkpoint is None and pretrained:
        raise ValueError(
            f"Expected a file with the weights of the {part}, got backbone.pretrained={pretrained}, which has none. "
            "Give backbone.checkpoint=<file>."
        )


def place_weights(
    model: nn.Module,
    source: Mapping[str, Any],
    model_name: str,
    convert: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]],
) -> None:
    """Loads the weights that a configuration names; with none, the random ones stay.

    Args:
        model: gets them.
        source: `checkpoint`, a file, goes before `pretrained`, an id of the hub.
        model_name: for the errors.
        convert: gives the model's own keys for those of the file.

    Raises:
        FileNotFoundError: when the file does not exist.
        ValueError: when the weights cannot be fetched, or do not fit.
    """
    path = source.get("checkpoint")
    if path is None and isinstance(repository := source.get("pretrained"), str):
        path = fetch_weights(repository, _FILES_ON_HUB, model_name)
    if path is not None:
        weights = read_weights(path, model_name)
        load_weights(model, convert(weights), str(path), model_name, weights)
