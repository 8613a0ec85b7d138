"""Modules of ours in files: what a module is made of as JSON, its state as safetensors."""

import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from safetensors.torch import load_file, save_file
from torch import nn

from src.activation_spec import ActivationSpec
from src.files import digest_file, write_atomically
from src.fitted_on import FILE as FITTED_ON_FILE
from src.fitted_on import write_fitted_on
from src.records import FittedItem

Module = TypeVar("Module", bound=nn.Module)

FITTED_ON_KEY = "fitted_on_digest"
_STATE = "state.safetensors"
_CONFIG = "cfg.json"
_OUR_MODULES = "src.models."
_TARGET = "_target_"


def save_module(
    module: nn.Module,
    export_dir: str | Path,
    arguments: Mapping[str, Any],
    metadata: Mapping[str, Any] | None = None,
    fitted: Sequence[FittedItem] | None = None,
    spec: ActivationSpec = ActivationSpec(),  # noqa: B008 - frozen
) -> None:
    """Writes a module so that `load_module` gives it back bit for bit.

    Args:
        module: the module.
        export_dir: the folder, made when missing.
        arguments: of the constructor, JSON values; a module among them as `describe` gives it.
        metadata: JSON values to keep with it.
        fitted: the items that it was fitted on; None where they are not known.
        spec: of the activations that it was fitted on.
    """
    export_dir = Path(export_dir)
    stated = {"spec": spec.to_dict(), **note_fitted_on(export_dir, fitted)}
    write_state(module, export_dir / _STATE)
    config = {**describe(module, arguments), "metadata": {**(metadata or {}), **stated}}
    write_config(config, export_dir / _CONFIG)


def load_module(export_dir: str | Path, base: type[Module]) -> tuple[Module, dict[str, Any]]:
    """Reads a module that `save_module` wrote, in evaluation mode on the CPU, and its metadata.

    Args:
        export_dir: the folder.
        base: what it must be.

    Raises:
        FileNotFoundError: when a file is missing.
        ValueError: when it is none of ours, or its state does not fit its configuration.
    """
    export_dir = Path(export_dir)
    config = read_config(export_dir / _CONFIG, export_dir / _STATE)
    metadata = config.pop("metadata", {})
    return read_state(build(config, base, export_dir / _CONFIG), export_dir / _STATE), metadata


def read_spec(export_dir: str | Path) -> ActivationSpec:
    """Returns the spec of the activations that an exported module was fitted on; see `spec_of`."""
    return spec_of(read_config(Path(export_dir) / _CONFIG).get("metadata", {}))


def spec_of(metadata: Mapping[str, Any]) -> ActivationSpec:
    """Returns the spec of the activations that an exported module was fitted on; unknown where it does not say."""
    return ActivationSpec.from_dict(metadata.get("spec"))


def describe(module: nn.Module, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a module's class and the arguments of its constructor, for `build`."""
    return {_TARGET: f"{type(module).__module__}.{type(module).__qualname__}", **arguments}


def build(described: Mapping[str, Any], base: type[Module], source: Path) -> Module:
    """Makes the module that `describe` described, and those among its arguments.

    Only our own classes: a file from elsewhere must not choose what is imported.

    Raises:
        ValueError: when the class is none of ours, or not a `base`.
    """
    arguments = dict(described)
    target = str(arguments.pop(_TARGET, None))
    module, _, name = target.rpartition(".")
    known = module.startswith(_OUR_MODULES) and importlib.util.find_spec(module) is not None
    found = getattr(importlib.import_module(module), name, None) if known else None
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ValueError(
            f"Expected a {_TARGET} that names a {base.__name__} below {_OUR_MODULES[:-1]} in {source}, got {target!r}: "
            "it was not exported by Loupe."
        )
    for key, value in arguments.items():
        if isinstance(value, dict) and _TARGET in value:
            arguments[key] = build(value, nn.Module, source)
    return found(**arguments)


def write_state(module: nn.Module, path: Path) -> None:
    """Writes parameters and buffers."""
    with write_atomically(path) as temporary:
        save_file({name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}, temporary)


def read_state(module: Module, path: Path) -> Module:
    """Returns a module in evaluation mode with the parameters and buffers in a file.

    Raises:
        ValueError: when they are not those of the module.
    """
    try:
        module.load_state_dict(load_file(path))
    except RuntimeError as error:
        raise ValueError(f"Expected {path} to fit {_CONFIG} beside it, got {error}") from error
    return module.eval()


def write_config(config: Mapping[str, Any], path: Path) -> None:
    """Writes what a module is made of; the last file of an export: a folder that has it is whole."""
    with write_atomically(path) as temporary:
        temporary.write_text(json.dumps(config, indent=2) + "\n")


def read_config(*paths: Path) -> dict[str, Any]:
    """Returns the first file's JSON.

    Raises:
        FileNotFoundError: when one of the files is missing.
    """
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(
                f"Expected an exported module with {path.name} in {path.parent}, found none: make it with "
                "task=train_sae or task=train_mil."
            )
    return json.loads(paths[0].read_text())


def note_fitted_on(export_dir: Path, fitted: Sequence[FittedItem] | None) -> dict[str, str]:
    """Writes `fitted_on.csv` into an export, so that leakage can be told elsewhere; returns its digest to state."""
    if fitted is None:
        return {}
    write_fitted_on(export_dir / FITTED_ON_FILE, fitted)
    return {FITTED_ON_KEY: digest_file(export_dir / FITTED_ON_FILE)}
