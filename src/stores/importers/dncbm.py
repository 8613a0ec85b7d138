"""Files of DN-CBM and Mammo-SAE: a state dict of ai-safety-foundation's SAE, with an axis of components in front."""

import torch

from src.models.saes.relu_l1 import ReLUL1
from src.stores.importers.entries import Entries
from src.stores.importers.imported import ImportedSAE
from src.stores.importers.source import Source

_BIASES = ("pre_encoder_bias._bias_reference", "post_decoder_bias._bias_reference")


def recognizes(source: Source) -> bool:
    """Whether the file holds this system's state dict."""
    return source.holds("encoder._weight", "decoder._weight", "tied_bias")


def read(source: Source) -> ImportedSAE:
    """Reads a ReLU SAE whose bias before the encoder and after the decoder is one.

    Raises:
        ValueError: when it has more than one component, or its biases are not one.
    """
    content = source.content
    if isinstance(content, dict) and isinstance(content.get("tied_bias"), torch.Tensor):
        content = {key: _first_component(value, key, source) for key, value in content.items()}
    entries = Entries(source.weights, content)
    state = entries.take_linear("tied_bias", "encoder._bias", "encoder._weight", "decoder._weight")
    for name in _BIASES:
        if entries.has(name) and not torch.equal(entries.take(name, len(state["b_dec"])), state["b_dec"]):
            raise ValueError(f"Expected {name} equal to tied_bias in {source.weights}, got other values.")
    entries.finish()
    return ImportedSAE(ReLUL1, {}, state, {"n_components": 1})


def _first_component(value: torch.Tensor, key: str, source: Source) -> torch.Tensor:
    """Drops the axis of components where there is one: biases have two axes then, and weights three."""
    if value.ndim != (3 if key.endswith("_weight") else 2):
        return value
    if len(value) != 1:
        raise ValueError(
            f"Expected one component in {source.weights}, got {len(value)} in {key}: save the one that is meant alone."
        )
    return value[0]
