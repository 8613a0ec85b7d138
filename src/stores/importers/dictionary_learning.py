"""dictionary_learning's folders: ae.pt and config.json."""

from typing import Any

from src.models.saes.base import SAE
from src.models.saes.batch_topk import BatchTopK
from src.models.saes.gated import Gated
from src.models.saes.jumprelu import JumpReLU
from src.models.saes.matryoshka_batch_topk import MatryoshkaBatchTopK
from src.models.saes.p_anneal import PAnneal
from src.models.saes.relu_l1 import ReLUL1
from src.models.saes.topk import TopK
from src.stores.importers.entries import Entries
from src.stores.importers.imported import ImportedSAE
from src.stores.importers.settings import fractions_of, one_of, plain, recorded_fvu
from src.stores.importers.source import Source

_CLASSES: dict[str, type[SAE]] = {
    "AutoEncoder": ReLUL1,
    "AutoEncoderTopK": TopK,
    "BatchTopKSAE": BatchTopK,
    "MatryoshkaBatchTopKSAE": MatryoshkaBatchTopK,
    "JumpReluAutoEncoder": JumpReLU,
    "GatedAutoEncoder": Gated,
}
# Where nn.Linear modules are saved: the name of the decoder's bias.
_B_DEC = dict.fromkeys(("AutoEncoderTopK", "BatchTopKSAE"), "b_dec")
_B_DEC |= {"AutoEncoder": "bias", "GatedAutoEncoder": "decoder_bias"}
_NOT_SAVED = (
    "If training normalised activations, biases and threshold were scaled back when the file was saved; the factor is "
    "not in it and is not needed."
)

_OTHER_FVU = (
    "The recorded explained variance is dictionary_learning's: a mean over batches of ratios in which a constant "
    "offset of the reconstruction counts for nothing."
)


def recognizes(source: Source) -> bool:
    """Whether config.json says which dictionary the weights are of."""
    trainer = (source.json("config.json") or {}).get("trainer")
    return isinstance(trainer, dict) and "dict_class" in trainer


def read(source: Source) -> ImportedSAE:
    """Reads a dictionary as `from_pretrained(normalize_decoder=False)` does: atoms keep their norms.

    A JumpReLU dictionary encodes without subtracting b_dec. Inference of TopK keeps k per row, of BatchTopK what
    exceeds the threshold.

    Raises:
        FileNotFoundError: when config.json is missing.
        ValueError: when the dictionary is of a class that we do not have, or its file does not fit it.
    """
    config, where = source.required_json("config.json")
    trainer = config.get("trainer", {})
    name = one_of("trainer.dict_class", trainer.get("dict_class"), list(_CLASSES), where)
    entries = Entries(source.weights, source.content)
    arguments: dict[str, Any] = {}
    assumed = [_NOT_SAVED]
    if name in _B_DEC:
        state = entries.take_linear(_B_DEC[name], "gate_bias" if name == "GatedAutoEncoder" else "encoder.bias")
    else:
        state = entries.take_weights()
    n_latents = len(state["W_enc"])
    if name in ("AutoEncoderTopK", "BatchTopKSAE", "MatryoshkaBatchTopKSAE"):
        arguments["k"] = int(entries.take("k"))
        state["threshold"] = entries.take("threshold")
        if name != "AutoEncoderTopK" and state["threshold"] < 0:
            assumed.append("The threshold was never set in training: inference keeps all positive latents.")
    if name == "JumpReluAutoEncoder":
        state["threshold"] = entries.take("threshold", n_latents)
        arguments |= {"apply_b_dec_to_input": False, "allow_negative_threshold": True}
    if name == "MatryoshkaBatchTopKSAE":
        sizes = [int(size) for size in entries.take("group_sizes", None)]
        arguments |= {"group_fractions": fractions_of(sizes), "group_weights": trainer.get("group_weights")}
    if name == "GatedAutoEncoder":
        state |= {"r_mag": entries.take("r_mag", n_latents), "b_mag": entries.take("mag_bias", n_latents)}
    entries.finish()
    sae_class = PAnneal if trainer.get("trainer_class") == "PAnnealTrainer" else _CLASSES[name]
    fvu = recorded_fvu(source.json("eval_results.json"))
    if fvu is not None:
        assumed.append(_OTHER_FVU)
    return ImportedSAE(sae_class, arguments, state, plain(config), assumed=tuple(assumed), recorded_fvu=fvu)
