"""saev's files: one line of JSON, then a state dict."""

from typing import Any

from src.models.saes.base import SAE
from src.models.saes.batch_topk import BatchTopK
from src.models.saes.relu_l1 import ReLUL1
from src.stores.importers.entries import Entries
from src.stores.importers.imported import ImportedSAE
from src.stores.importers.settings import one_of, plain
from src.stores.importers.source import Source

_ACTIVATIONS = ("Relu", "TopK", "BatchTopK")
_NEWEST_SCHEMA = 5
_B_DEC_SUBTRACTED = (
    "b_dec is subtracted before encoding, as by the code that wrote files of this schema; saev's newer loader does not "
    "subtract it."
)
_B_DEC_KEPT = "b_dec is not subtracted before encoding, as by saev's code since schema 2."


def recognizes(source: Source) -> bool:
    """Whether the file begins with a header."""
    return source.weights.suffix != ".safetensors" and source.header is not None


def read(source: Source) -> ImportedSAE:
    """Reads a ReLU or BatchTopK SAE of any schema up to 5.

    Raises:
        ValueError: when there is no header, its schema is newer, or the SAE keeps latents below zero: saev's TopK does
            (no ReLU follows), and BatchTopK did while it had no threshold.
    """
    header = source.header
    if header is None:
        raise ValueError(f"Expected a line of JSON at the start of {source.weights}, found none.")
    schema = one_of("schema", header.get("schema", 0), range(_NEWEST_SCHEMA + 1), source.weights)
    config = header.get("cfg", header)
    name, settings = _activation(header, config)
    one_of("activation", name, ("Relu", "BatchTopK"), source.weights, "latents below zero are kept by saev's TopK")
    entries = Entries(source.weights, source.content)
    state = entries.take_weights()
    # Before the activation became a part of the configuration.
    is_old = schema == 0 or (schema == 1 and header.get("cls") in _ACTIVATIONS)
    arguments: dict[str, Any] = {"apply_b_dec_to_input": is_old}
    sae_class: type[SAE] = ReLUL1
    if name == "BatchTopK":
        sae_class = BatchTopK
        arguments["k"] = int(settings.get("top_k", 32))  # saev's default
        state["threshold"] = entries.take("activation.threshold")
    entries.finish()
    assumed = (_B_DEC_SUBTRACTED if is_old else _B_DEC_KEPT,)
    return ImportedSAE(sae_class, arguments, state, plain(header), assumed=assumed)


def _activation(header: dict[str, Any], config: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Returns the activation's name and settings; ReLU where the file is older than the others."""
    if isinstance(activation := config.get("activation"), dict):
        return str(activation.get("cls")), activation.get("params") or {}
    return (str(header["cls"]), config) if header.get("cls") in _ACTIVATIONS else ("Relu", {})
