"""Files of openai/sparse_autoencoder: one state dict with the activation's name in it."""

from typing import Any

from src.models.saes.base import SAE
from src.models.saes.relu_l1 import ReLUL1
from src.models.saes.topk import TopK
from src.stores.importers.entries import Entries
from src.stores.importers.imported import ImportedSAE
from src.stores.importers.settings import ROW_SCALE_NOTE, one_of, plain
from src.stores.importers.source import Source

_STATISTICS = ("stats_last_nonzero", "latents_activation_frequency", "latents_mean_square")


def recognizes(source: Source) -> bool:
    """Whether the file holds this system's state dict."""
    return source.holds("pre_bias", "latent_bias", "encoder.weight")


def read(source: Source) -> ImportedSAE:
    """Reads an autoencoder as its `from_state_dict` does: where the activation is TopK, rows are normalised.

    Raises:
        ValueError: when the activation is another than ReLU or TopK of ReLU, or the weights are tied.
    """
    entries = Entries(source.weights, source.content)
    name = one_of("activation", entries.value("activation", "ReLU"), ("ReLU", "TopK"), source.weights)
    settings: Any = entries.value("activation_state_dict") or {}
    W_enc = entries.take("encoder.weight", None, None)
    n_latents, d_in = W_enc.shape
    state = {
        "W_enc": W_enc,
        "b_enc": entries.take("latent_bias", n_latents),
        "W_dec": entries.take("decoder.weight", d_in, n_latents).T,
        "b_dec": entries.take("pre_bias", d_in),
    }
    entries.leave(*_STATISTICS)
    entries.finish()
    arguments: dict[str, Any] = {"d_in": d_in, "n_latents": n_latents}
    facts = {"activation": name, **plain(settings)}
    if name == "ReLU":
        return ImportedSAE(ReLUL1, arguments, state, facts)
    one_of("postact_fn", settings.get("postact_fn", "ReLU"), ("ReLU",), source.weights, "latents below zero")
    if "k" not in settings:
        raise ValueError(f"Expected k in activation_state_dict of {source.weights}, got {sorted(settings)}.")
    arguments |= {"k": int(settings["k"]), "input_norm": "z_score"}
    sae_class: type[SAE] = TopK
    return ImportedSAE(sae_class, arguments, state, facts, assumed=(_NORMALISED, ROW_SCALE_NOTE))


_NORMALISED = (
    "Rows are normalised: the system's loader takes that from the activation being TopK. Its trainer left it to the "
    "user."
)
