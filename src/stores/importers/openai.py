"""Files of openai/sparse_autoencoder: one state dict with the activation's name in it."""

from typing import Any

from src.models.saes.relu_l1 import ReLUL1
from src.models.saes.topk import TopK
from src.stores.importers.entries import Entries
from src.stores.importers.imported import ImportedSAE
from src.stores.importers.settings import ROW_SCALE_NOTE, one_of, plain, whole
from src.stores.importers.source import Source

_NORMALISED = (
    "Rows are normalised: the system's loader takes that from the activation being TopK. Its trainer left it to the "
    "user."
)
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
    state = entries.take_linear("pre_bias", "latent_bias")
    entries.leave(*_STATISTICS)
    entries.finish()
    facts = {"activation": name, **plain(settings)}
    if name == "ReLU":
        return ImportedSAE(ReLUL1, {}, state, facts)
    one_of("postact_fn", settings.get("postact_fn", "ReLU"), ("ReLU",), source.weights, "latents below zero")
    arguments = {"k": whole(settings, "k", source.weights), "input_norm": "z_score"}
    return ImportedSAE(TopK, arguments, state, facts, assumed=(_NORMALISED, ROW_SCALE_NOTE))
