"""sparsify's folders (eai-sparsify 1.x): cfg.json and sae.safetensors."""

from src.models.saes.topk import TopK
from src.stores.importers.entries import Entries
from src.stores.importers.imported import ImportedSAE
from src.stores.importers.settings import one_of, plain, whole
from src.stores.importers.source import Source


def recognizes(source: Source) -> bool:
    """Whether this is the folder of one of sparsify's hook points."""
    config = source.json("cfg.json") or {}
    return source.weights.suffix == ".safetensors" and "k" in config and source.holds("encoder.weight", "W_dec")


def read(source: Source) -> ImportedSAE:
    """Reads a sparse coder that reconstructs its own input with a TopK of ReLU'd pre-latents.

    Raises:
        FileNotFoundError: when cfg.json is missing.
        ValueError: when it is a transcoder, has a skip connection, or keeps the largest of each group.
    """
    config, where = source.required_json("cfg.json")
    one_of("activation", config.get("activation", "topk"), ("topk",), where)
    for name in ("transcode", "skip_connection", "signed"):
        one_of(name, bool(config.get(name, False)), (False,), where)
    entries = Entries(source.weights, source.content)
    W_enc = entries.take("encoder.weight", None, None)
    n_latents, d_in = W_enc.shape
    state = {
        "W_enc": W_enc,
        "b_enc": entries.take("encoder.bias", n_latents),
        "W_dec": entries.take("W_dec", n_latents, d_in),
        "b_dec": entries.take("b_dec", d_in),
    }
    entries.finish()
    return ImportedSAE(TopK, {"k": whole(config, "k", where)}, state, plain(config))
