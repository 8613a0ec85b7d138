"""The formats that can be imported, and how one is told from another: by what the files hold."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from src.stores.importers import dictionary_learning, dncbm, openai, patchsae, prisma, sae1n, saelens, saev, sparsify
from src.stores.importers.imported import ImportedSAE
from src.stores.importers.source import Source

AUTO = "auto"


class Format(NamedTuple):
    """A format: whether a checkpoint is of it, and what it holds."""

    recognizes: Callable[[Source], bool]
    read: Callable[[Source], ImportedSAE]


FORMATS: Mapping[str, Format] = {
    "dictionary_learning": Format(dictionary_learning.recognizes, dictionary_learning.read),
    "saelens": Format(saelens.recognizes, saelens.read),
    "sparsify": Format(sparsify.recognizes, sparsify.read),
    "openai": Format(openai.recognizes, openai.read),
    "sae1n": Format(sae1n.recognizes, sae1n.read),
    "patchsae": Format(patchsae.recognizes, patchsae.read),
    "dncbm": Format(dncbm.recognizes, dncbm.read),
    "saev": Format(saev.recognizes, saev.read),
    "prisma": Format(prisma.recognizes, prisma.read),
}


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
