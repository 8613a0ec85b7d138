"""ViT-Prisma's SAEs: weights.pt with config.json, or one pickle of both."""

from typing import Any

from src.models.saes.base import SAE
from src.models.saes.gated import Gated
from src.models.saes.relu_l1 import ReLUL1
from src.models.saes.topk import TopK
from src.safe_pickle import StandIn, attributes
from src.stores.importers.entries import Entries
from src.stores.importers.imported import ImportedSAE
from src.stores.importers.settings import ROW_SCALE_NOTE, one_of, plain, whole
from src.stores.importers.source import Source

MARKS = frozenset({"activation_fn_str", "normalize_activations", "hook_point_layer"})
"""Settings that tell Prisma's configuration from PatchSAE's."""


def recognizes(source: Source) -> bool:
    """Whether the configuration in the pickle, or beside the weights, is Prisma's."""
    if source.holds("cfg", "state_dict"):
        return bool(MARKS & attributes(source.content["cfg"]).keys())
    return source.holds("W_enc", "W_dec") and bool(MARKS & (source.json("config.json") or {}).keys())


def read(source: Source) -> ImportedSAE:
    """Reads a standard or gated SAE with ReLU or TopK.

    Raises:
        FileNotFoundError: when config.json is missing and the weights hold no configuration.
        ValueError: when the SAE is a transcoder or of another kind, or a setting is missing.
    """
    is_pickle = source.holds("cfg", "state_dict")
    pickled = (attributes(source.content["cfg"]), source.weights) if is_pickle else None
    config, where = pickled or source.required_json("config.json")
    for name in ("normalize_activations", "activation_fn_str"):
        if name not in config:
            raise ValueError(f"Expected {name} in the configuration in {where}, got {sorted(config)}.")
    architecture = one_of("architecture", config.get("architecture", "standard"), ("standard", "gated"), where)
    one_of("is_transcoder", bool(config.get("is_transcoder", False)), (False,), where)
    norm = one_of("normalize_activations", config["normalize_activations"] or "none", ("none", "layer_norm"), where)
    activation = one_of("activation_fn_str", config["activation_fn_str"], ("relu", "topk"), where)

    entries = Entries(source.weights, source.content["state_dict"] if is_pickle else source.content)
    assumed = [ROW_SCALE_NOTE] if norm == "layer_norm" else []
    arguments: dict[str, Any] = {"input_norm": "z_score" if norm == "layer_norm" else "none"}
    sae_class: type[SAE] = ReLUL1
    if architecture == "gated":
        one_of("activation_fn_str", activation, ("relu",), where, "TopK of a gated SAE")
        sae_class = Gated
        entries.leave("b_enc")  # a parameter that a gated SAE of Prisma has and does not use
        state = entries.take_weights("b_gate")
        state |= {name: entries.take(name, len(state["W_enc"])) for name in ("r_mag", "b_mag")}
    else:
        state = entries.take_weights()
        if activation == "topk":
            sae_class = TopK
            arguments["k"] = _k(config, where)
    entries.finish()
    return ImportedSAE(sae_class, arguments, state, plain(config), assumed=tuple(assumed))


def _k(config: dict[str, Any], where: Any) -> int:
    settings = config.get("activation_fn_kwargs") or {}
    after = settings.get("postact_fn")
    name = type(after).__name__ if isinstance(after, StandIn) else after
    one_of("postact_fn", name, (None, "ReLU", "relu"), where, "latents below zero")
    return whole(settings, "k", where)
