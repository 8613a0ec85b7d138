"""A foreign checkpoint on disk: its weights and what lies beside them, each read once."""

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from src.files import list_files
from src.safe_pickle import load_checkpoint
from src.stores.importers.settings import DEEPEST, plain

_KNOWN_WEIGHTS = (
    "sae_weights.safetensors",
    "sae.safetensors",
    "ae.pt",
    "sae_best.pt",
    "checkpoints/sae_best.pt",
    "weights.pt",
)
_WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
# A header is one line of JSON; a file that begins with a brace and has none is no checkpoint of saev's.
_LONGEST_HEADER = 1 << 20


class Source:
    """Where a checkpoint lies.

    Attributes:
        path: what the user named, a file or a folder.
        weights: the file with the weights.
        files: the files read so far.
    """

    def __init__(self, path: str | Path) -> None:
        """Finds the weights; reads nothing.

        Raises:
            FileNotFoundError: when there is nothing at the path, or no weights in the folder.
            ValueError: when a folder holds several that could be meant.
        """
        self.path = Path(path).expanduser()
        self.weights = self._find_weights()
        self.files: list[Path] = []
        self._json: dict[str, dict[str, Any] | None] = {}

    @cached_property
    def header(self) -> dict[str, Any] | None:
        """The line of JSON before the weights, where there is one (saev)."""
        with open(self.weights, "rb") as file:
            if file.read(1) != b"{":
                return None
            file.seek(0)
            line = file.readline(_LONGEST_HEADER)
        return _parse(line, f"a line of JSON at the start of {self.weights}")

    @cached_property
    def content(self) -> Any:
        """What the weights' file holds: usually names and tensors.

        Raises:
            ValueError: when it cannot be read without running something.
        """
        self._note(self.weights)
        if self.weights.suffix == ".safetensors":
            try:
                return load_file(self.weights)
            except (SafetensorError, OSError) as error:
                raise ValueError(f"Expected safetensors in {self.weights}, got {error}.") from error
        if self.header is None:
            return load_checkpoint(self.weights)
        return load_checkpoint(self.weights, self.weights.read_bytes().partition(b"\n")[2])

    def holds(self, *keys: str) -> bool:
        """Whether the weights' file holds entries of all these names."""
        return isinstance(self.content, Mapping) and all(key in self.content for key in keys)

    def json(self, name: str) -> dict[str, Any] | None:
        """Returns the JSON object of a file beside the weights, or above a folder `checkpoints`; None without one."""
        if name not in self._json:
            path = self.path_of(name)
            self._json[name] = self._read_json(path) if path.is_file() else None
        return self._json[name]

    def path_of(self, name: str) -> Path:
        """Returns where a file beside the weights lies, or would lie."""
        folder = self.weights.parent
        is_above = folder.name == "checkpoints" and not (folder / name).is_file()
        return (folder.parent if is_above else folder) / name

    def required_json(self, name: str) -> tuple[dict[str, Any], Path]:
        """Returns `json(name)` and where it lies.

        Raises:
            FileNotFoundError: when there is no such file.
        """
        found = self.json(name)
        if found is None:
            raise FileNotFoundError(f"Expected {name} beside {self.weights}, found none.")
        return found, self.path_of(name)

    def _read_json(self, path: Path) -> dict[str, Any]:
        self._note(path)
        content = _parse(path.read_bytes(), f"JSON in {path}")
        if not isinstance(content, dict):
            raise ValueError(f"Expected a JSON object in {path}, got {type(content).__name__}.")
        return content

    def _note(self, path: Path) -> None:
        if path not in self.files:
            self.files.append(path)

    def _find_weights(self) -> Path:
        if self.path.is_file():
            return self.path
        if not self.path.is_dir():
            raise FileNotFoundError(f"Expected a checkpoint's file or folder at {self.path}, found {_kind(self.path)}.")
        found = [self.path / name for name in _KNOWN_WEIGHTS if (self.path / name).is_file()]
        if not found:
            found = [path for path in list_files(self.path) if path.suffix in _WEIGHT_SUFFIXES and path.is_file()]
        if not found:
            raise FileNotFoundError(
                f"Expected weights ({', '.join(_KNOWN_WEIGHTS)}, or one file {' '.join(_WEIGHT_SUFFIXES)}) in "
                f"{self.path}, found {[path.name for path in list_files(self.path)]}: name the file."
            )
        if len(found) > 1:
            raise ValueError(
                f"Expected one file of weights in {self.path}, found {[path.name for path in found]}: name the file."
            )
        return found[0]


def _parse(text: bytes, what: str) -> Any:
    """Reads JSON that a program wrote; nested far deeper than any configuration, it would end in Python's own limits.

    Raises:
        ValueError: beginning with what was expected.
    """
    try:
        content = json.loads(text)
    except RecursionError as error:
        raise ValueError(f"Expected {what} of at most {DEEPEST} levels, got more.") from error
    except ValueError as error:
        raise ValueError(f"Expected {what}, got {error}.") from error
    return plain(content, what)


def _kind(path: Path) -> str:
    """Says what lies at a path that is neither a file nor a folder."""
    if path.is_symlink():
        return "a link that leads nowhere"
    return "what is neither" if path.exists() else "nothing"
