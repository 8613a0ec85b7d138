"""The formats that can be imported, and how one is told from another: by what the files hold."""

from collections.abc import Mapping
from typing import Any

from src.stores.importers import dictionary_learning, dncbm, openai, patchsae, prisma, sae1n, saelens, saev, sparsify
from src.stores.importers.imported import ImportedSAE
from src.stores.importers.source import Source

AUTO = "auto"


_MODULES = (dictionary_learning, saelens, sparsify, openai, sae1n, patchsae, dncbm, saev, prisma)
FORMATS: Mapping[str, Any] = {module.__name__.rpartition(".")[2]: module for module in _MODULES}
"""Modules by name: `recognizes(source)` tells whether a checkpoint is of the format, `read(source)` what it holds."""


def recognize(source: Source) -> str:
    """Returns the name of a checkpoint's format.

    Raises:
        ValueError: when it is of none, or of several.
    """
    found = [name for name, one in FORMATS.items() if one.recognizes(source)]
    if len(found) == 1:
        return found[0]
    content = source.content
    holds = sorted(map(str, content))[:20] if isinstance(content, Mapping) else type(content).__name__
    raise ValueError(
        f"Expected {source.weights}, with the files beside it, to be of one of the formats {list(FORMATS)}, got "
        f"{found or 'none of them'}; it holds {holds}. Name the format when you know it (convert.format=<name>)."
    )


def import_sae(source: Source, name: str = AUTO) -> tuple[str, ImportedSAE]:
    """Reads a checkpoint.

    Args:
        source: where it lies.
        name: its format, or "auto".

    Returns:
        The format's name and what was read.

    Raises:
        FileNotFoundError: when a file that belongs to it is missing.
        ValueError: when the format is unknown, or the checkpoint is not what the format says.
    """
    if name != AUTO and name not in FORMATS:
        raise ValueError(f"Expected convert.format among {[AUTO, *FORMATS]}, got {name!r}.")
    chosen = recognize(source) if name == AUTO else name
    return chosen, FORMATS[chosen].read(source)
