"""Checkpoints that torch.save wrote, read without running anything that they hold."""

import io
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals


class StandIn:
    """In place of a foreign class: its instances hold attributes and do nothing.

    A plain object is pickled as its class, made without arguments, and its attributes, and both work here. Anything
    that the unpickler would call with arguments, a function as well as a class, is an error that names it.
    """

    def __new__(cls, *arguments: Any) -> "StandIn":
        """Makes an empty instance, the one thing that a pickle may do with a stand-in."""
        if arguments:
            cls._refuse()
        return super().__new__(cls)

    def __init__(self, *_: Any) -> None:
        self._refuse()

    @classmethod
    def _refuse(cls) -> NoReturn:
        raise ValueError(f"a call of {cls.__module__}.{cls.__name__}")


def load_checkpoint(path: str | Path, content: bytes | None = None) -> Any:
    """Reads what torch.save wrote, on the CPU, with tensors and plain values as they are.

    torch's own weights-only unpickler reads the file; it imports nothing and calls only what torch lists as safe.
    Every other class or function that the file names is replaced by a `StandIn` of that name.

    Args:
        path: the file.
        content: its bytes, where they begin within the file.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when the file would call something else, or is not such a file; it names both.
    """
    path = Path(path)
    if content is None and not path.is_file():  # also of a pipe, which would be waited for
        raise FileNotFoundError(f"Expected a checkpoint at {path}, found no such file.")
    foreign: list[Any] = []
    try:
        with open(path, "rb") if content is None else io.BytesIO(content) as source:
            foreign = _stand_ins(source)
            with safe_globals(foreign):
                return torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile pickle may raise anything
        found = repr(error)
        if isinstance(error, pickle.UnpicklingError):  # its text advises to run the file
            named = ", ".join(f"{one.__module__}.{one.__name__}" for one in foreign)
            found = f"instructions that go beyond them{f' and name {named}' if named else ''}"
        raise ValueError(
            f"Expected {path} to hold tensors and plain values written by torch.save, got {found}. Nothing of it was "
            "run."
        ) from error


def attributes(value: Any) -> dict[str, Any]:
    """Returns a configuration as a dict, whether it was pickled as one or as an object.

    Raises:
        ValueError: when it is neither.
    """
    if isinstance(value, StandIn):
        return dict(vars(value))
    if isinstance(value, Mapping):
        return {str(key): entry for key, entry in value.items()}
    raise ValueError(f"Expected a configuration with named values, got {type(value).__name__}.")


def _stand_ins(source: Any) -> list[Any]:
    is_zip = zipfile.is_zipfile(source)  # else of torch before 1.6, and may name nothing but tensors
    source.seek(0)
    pairs = [name.rpartition(".") for name in get_unsafe_globals_in_checkpoint(source)] if is_zip else []
    source.seek(0)
    return [type(name, (StandIn,), {"__module__": module}) for module, _, name in pairs]
