"""dictionary_learning's folders: ae.pt and config.json."""

from typing import Any

from torch import Tensor

from src.models.saes.base import SAE
from src.models.saes.batch_topk import BatchTopK
from src.models.saes.gated import Gated
from src.models.saes.jumprelu import JumpReLU
from src.models.saes.matryoshka_batch_topk import MatryoshkaBatchTopK
from src.models.saes.p_anneal import PAnneal
from src.models.saes.relu_l1 import ReLUL1
from src.models.saes.topk import TopK
from src.stores.importers.entries import Entries
from src.stores.importers.groups import fractions_of
from src.stores.importers.imported import ImportedSAE
from src.stores.importers.settings import one_of, plain, recorded_fvu
from src.stores.importers.source import Source

_CLASSES: dict[str, type[SAE]] = {
    "AutoEncoder": ReLUL1,
    "AutoEncoderTopK": TopK,
    "BatchTopKSAE": BatchTopK,
    "MatryoshkaBatchTopKSAE": MatryoshkaBatchTopK,
    "JumpReluAutoEncoder": JumpReLU,
    "GatedAutoEncoder": Gated,
}
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
    config = source.required_json("config.json")
    trainer = config.get("trainer", {})
    where = source.path_of("config.json")
    name = one_of("trainer.dict_class", trainer.get("dict_class"), list(_CLASSES), where)
    entries = Entries(source.weights, source.content)
    arguments: dict[str, Any] = {}
    assumed = [_NOT_SAVED]
    if name in ("JumpReluAutoEncoder", "MatryoshkaBatchTopKSAE"):
        state = entries.take_weights()
    else:
        state = _linear_weights(entries, name)
    n_latents, d_in = state["W_enc"].shape
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
    arguments |= {"d_in": d_in, "n_latents": n_latents}
    fvu = recorded_fvu(source.json("eval_results.json"))
    if fvu is not None:
        assumed.append(_OTHER_FVU)
    return ImportedSAE(sae_class, arguments, state, plain(config), assumed=tuple(assumed), recorded_fvu=fvu)


def _linear_weights(entries: Entries, name: str) -> dict[str, Tensor]:
    """Weights of nn.Linear modules, [out, in]."""
    W_enc = entries.take("encoder.weight", None, None)
    n_latents, d_in = W_enc.shape
    b_dec = {"AutoEncoder": "bias", "GatedAutoEncoder": "decoder_bias"}.get(name, "b_dec")
    return {
        "W_enc": W_enc,
        "b_enc": entries.take("gate_bias" if name == "GatedAutoEncoder" else "encoder.bias", n_latents),
        "W_dec": entries.take("decoder.weight", d_in, n_latents).T,
        "b_dec": entries.take(b_dec, d_in),
    }
