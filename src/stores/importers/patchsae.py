"""Pickles of PatchSAE and CytoSAE: a state dict with the object, or the dict, of its configuration."""

from typing import Any

from src.models.saes.relu_l1 import ReLUL1
from src.safe_pickle import attributes
from src.stores.importers.entries import Entries
from src.stores.importers.imported import ImportedSAE
from src.stores.importers.prisma import MARKS as PRISMA_MARKS
from src.stores.importers.settings import one_of, plain
from src.stores.importers.source import Source


def recognizes(source: Source) -> bool:
    """Whether this is a pickled state with a configuration that is not Prisma's."""
    return _is_pickle(source) and not PRISMA_MARKS & _configuration(source).keys()


def read(source: Source) -> ImportedSAE:
    """Reads a ReLU SAE; nothing of the pickle is run (see `src.safe_pickle`).

    Raises:
        ValueError: when there is no configuration or no state, or the SAE is gated.
    """
    if not _is_pickle(source):
        raise ValueError(f"Expected state_dict and cfg or config in {source.weights}, found no such entries.")
    config = _configuration(source)
    one_of("gated_sae", config.get("gated_sae", False), (False,), source.weights)
    entries = Entries(source.weights, source.content["state_dict"])
    state = entries.take_weights()
    entries.finish()
    return ImportedSAE(ReLUL1, {}, state, plain(config))


def _is_pickle(source: Source) -> bool:
    return source.holds("state_dict", "cfg") or source.holds("state_dict", "config")


def _configuration(source: Source) -> dict[str, Any]:
    return attributes(source.content["cfg" if source.holds("cfg") else "config"])
