"""SAELens's folders: cfg.json and sae_weights.safetensors, as saved for inference or for training."""

import itertools
from typing import Any

import torch

from src.models.saes.base import SAE
from src.models.saes.batch_topk import BatchTopK
from src.models.saes.gated import Gated
from src.models.saes.jumprelu import JumpReLU
from src.models.saes.matryoshka_batch_topk import MatryoshkaBatchTopK
from src.models.saes.relu_l1 import ReLUL1
from src.models.saes.topk import TopK
from src.stores.importers.entries import Entries
from src.stores.importers.imported import ImportedSAE, scale_to_unit_atoms
from src.stores.importers.settings import ROW_SCALE_NOTE, fractions_of, one_of, plain, recorded_fvu, whole
from src.stores.importers.source import Source

_CLASSES: dict[str, type[SAE]] = {
    "standard": ReLUL1,
    "topk": TopK,
    "jumprelu": JumpReLU,
    "gated": Gated,
    "batchtopk": BatchTopK,
    "matryoshka_batchtopk": MatryoshkaBatchTopK,
}
_NORMS = ("none", "layer_norm", "expected_average_only_in")
_K_SPARSE = ("topk", "batchtopk", "matryoshka_batchtopk")
_OF_NEURONS = {"gated": ("r_mag", "b_mag"), "jumprelu": ("threshold",)}


def recognizes(source: Source) -> bool:
    """Whether this is a folder of SAELens."""
    config = source.json("cfg.json") or {}
    return source.weights.suffix == ".safetensors" and "d_sae" in config and source.holds("W_enc", "W_dec")


def read(source: Source) -> ImportedSAE:
    """Reads an SAE of SAELens 5 or 6.

    `rescale_acts_by_decoder_norm` compares latents times their atom's norm: with unit atoms and an encoder scaled by
    as much, they are what SAELens compares and returns. Its layer_norm is our z_score.

    Raises:
        FileNotFoundError: when cfg.json or the factor of the inputs is missing.
        ValueError: when the SAE is of a kind that we do not have.
    """
    config, where = source.required_json("cfg.json")
    architecture = one_of("architecture", _architecture(config), list(_CLASSES), where)
    one_of("reshape_activations", config.get("reshape_activations", "none"), ("none", "hook_z"), where)
    d_in, n_latents = (whole(config, name, where) for name in ("d_in", "d_sae"))
    arguments: dict[str, Any] = {"d_in": d_in, "n_latents": n_latents}
    arguments["apply_b_dec_to_input"] = bool(config.get("apply_b_dec_to_input", True))
    if architecture in _K_SPARSE:
        arguments["k"] = whole({**(config.get("activation_fn_kwargs") or {}), **config}, "k", where)
    if architecture == "matryoshka_batchtopk":
        arguments |= _groups(config, n_latents)

    entries = Entries(source.weights, source.content)
    state = entries.take_weights("b_gate" if architecture == "gated" else "b_enc")
    for name in _OF_NEURONS.get(architecture, ()):
        state[name] = entries.take(name, n_latents)
    if "batchtopk" in architecture:
        state["threshold"] = entries.take("topk_threshold")
    entries.finish()
    folded, assumed = [], []
    if config.get("rescale_acts_by_decoder_norm", False) and architecture in _K_SPARSE:
        state = scale_to_unit_atoms(state)
        folded.append("Atom norms were folded into the encoder (rescale_acts_by_decoder_norm).")
    norm = one_of("normalize_activations", config.get("normalize_activations") or "none", _NORMS, where)
    if norm == "layer_norm":
        arguments["input_norm"] = "z_score"
        assumed.append(ROW_SCALE_NOTE)
    elif norm == "expected_average_only_in":
        arguments["input_norm"] = "global_scale"
        state["input_scale"] = torch.full((d_in,), 1 / _input_factor(source))
        folded.append("The factor of the inputs from activation_scaler.json became their scale.")
    if config.get("reshape_activations") == "hook_z":
        assumed.append("Inputs are the heads' outputs side by side (hook_z), d_in in all.")
    records = (config.get("metadata"), config)
    return ImportedSAE(
        _CLASSES[architecture], arguments, state, plain(config), tuple(folded), tuple(assumed), recorded_fvu(*records)
    )


def _architecture(config: dict[str, Any]) -> str:
    """SAELens 5 has "standard" for all and the activation beside it."""
    name, activation = config.get("architecture", "standard"), config.get("activation_fn_str", "relu")
    return str(activation if name == "standard" and activation != "relu" else name)


def _groups(config: dict[str, Any], n_latents: int) -> dict[str, Any]:
    widths = [int(width) for width in config.get("matryoshka_widths", [])]
    if not widths or widths[-1] != n_latents:
        widths.append(n_latents)
    sizes = [width - before for before, width in itertools.pairwise([0, *widths])]
    return {"group_fractions": fractions_of(sizes)}


def _input_factor(source: Source) -> float:
    scaler, _ = source.required_json("activation_scaler.json")
    factor = scaler.get("scaling_factor")
    if not isinstance(factor, int | float) or factor <= 0 or scaler.get("has_whitening"):
        raise ValueError(
            f"Expected a positive scaling_factor and no whitening in activation_scaler.json beside {source.weights}, "
            f"got {scaler}."
        )
    return float(factor)
