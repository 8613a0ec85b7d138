"""sae-1n's runs: checkpoints/sae_best.pt and config_best.json."""

from typing import Any

from src.models.saes.base import SAE
from src.models.saes.batch_topk import BatchTopK
from src.models.saes.jumprelu import JumpReLU
from src.models.saes.relu_l1 import ReLUL1
from src.models.saes.topk import TopK
from src.stores.importers.entries import Entries
from src.stores.importers.imported import ImportedSAE
from src.stores.importers.settings import ROW_SCALE_NOTE, one_of, plain, whole
from src.stores.importers.source import Source

_CLASSES: dict[str, type[SAE]] = {
    "BatchTopKSAE": BatchTopK,
    "TopKSAE": TopK,
    "VanillaSAE": ReLUL1,
    "JumpReLUSAE": JumpReLU,
}


def recognizes(source: Source) -> bool:
    """Whether a config beside the weights says which of sae-1n's SAEs they are of."""
    settings = (source.json(_config_name(source)) or {}).get("sae")
    return isinstance(settings, dict) and "model_type" in settings


def read(source: Source) -> ImportedSAE:
    """Reads an SAE as sae-1n encodes in evaluation mode.

    BatchTopK keeps what exceeds its threshold, TopK k per row, and both encode without their bias, which stays at its
    start. JumpReLU subtracts no b_dec; its threshold is the exponential of what the file holds.

    Raises:
        FileNotFoundError: when the config is missing.
        ValueError: when the model is unknown or the file does not fit it.
    """
    config, where = source.required_json(_config_name(source))
    settings = config.get("sae", {})
    name = one_of("sae.model_type", settings.get("model_type"), list(_CLASSES), where)
    entries = Entries(source.weights, source.content)
    state = entries.take_weights()
    arguments: dict[str, Any] = {"input_norm": "z_score" if settings.get("input_unit_norm", False) else "none"}
    folded = ()
    if name in ("BatchTopKSAE", "TopKSAE"):
        arguments |= {"k": whole(settings, "top_k", where), "use_b_enc": False}
    if name == "BatchTopKSAE":
        state["threshold"] = entries.take("threshold")
    if name == "JumpReLUSAE":
        state["threshold"] = entries.take("jumprelu.log_threshold", len(state["W_enc"])).exp()
        arguments["apply_b_dec_to_input"] = False
        folded = ("Thresholds are the exponentials of jumprelu.log_threshold.",)
    entries.finish()
    assumed = (ROW_SCALE_NOTE,) if arguments["input_norm"] == "z_score" else ()
    return ImportedSAE(_CLASSES[name], arguments, state, plain(config), folded, assumed)


def _config_name(source: Source) -> str:
    """config_best.json goes with sae_best.pt, config_500.json with sae_500.pt."""
    return f"config_{source.weights.stem.removeprefix('sae_')}.json"
