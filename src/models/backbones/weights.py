"""Weights of encoders: read from a file or from the hub, and loaded whole, or refused with what does not fit."""

import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from src.models.backbones.signatures import guess_encoders
from src.safe_pickle import load_checkpoint

# What training programs wrap weights in; an exponential moving average or a teacher is what is published.
_WRAPPERS = ("state_dict", "model", "teacher", "model_state_dict")
_N_TOLD = 3


def read_weights(path: str | Path, model_name: str) -> dict[str, Tensor]:
    """Returns the tensors of a weights file by key; nothing in it is run.

    Args:
        path: of safetensors; or of what torch.save wrote, weights alone or below `state_dict`, `model` or `teacher`; or
            a TorchScript archive, as OpenAI published CLIP.
        model_name: whose weights they are to be, for the errors.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it holds no weights.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"Expected the weights of {model_name} at {path}, found none. Download them (gated models need their "
            "licence accepted) and give backbone.checkpoint=<file>."
        )
    content = _read(path)
    while isinstance(content, Mapping) and (inner := [name for name in _WRAPPERS if _is_wrapped(content, name)]):
        content = content[inner[0]]
    named = content.items() if isinstance(content, Mapping) else ()
    tensors = {str(key): value for key, value in named if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f"Expected {path} to hold the weights of {model_name}, found no tensors by name.")
    return {key.removeprefix("module."): value for key, value in tensors.items()}


def fetch_weights(repository: str, names: Sequence[str], model_name: str) -> Path:
    """Returns the local copy of a weights file on the hub: the first of the names that the repository has.

    Args:
        repository: `<owner>/<model>`.
        names: of files, e.g. `pytorch_model.bin`.
        model_name: whose weights they are, for the errors.

    Raises:
        ValueError: when none can be fetched.
    """
    from huggingface_hub import hf_hub_download  # a slow import, and most weights are files
    from huggingface_hub.errors import EntryNotFoundError

    for name in names:
        try:
            return Path(hf_hub_download(repository, name))
        except EntryNotFoundError:
            continue
        except (OSError, ValueError) as error:
            raise ValueError(
                f"Expected to fetch the weights of {model_name} from {repository}, got: {error}. Accept its licence "
                "there and log in (`hf auth login`), or download them and give backbone.checkpoint=<file>."
            ) from error
    raise ValueError(f"Expected {repository} to have {' or '.join(names)}, found neither.")


def load_weights(
    model: nn.Module, weights: Mapping[str, Tensor], source: str, model_name: str, keys_in_file: Mapping[str, Tensor]
) -> None:
    """Loads weights that must be all there, and no others; only batch counters, which serve training, may be missing.

    Args:
        model: gets them.
        weights: in the model's own keys.
        source: the file, for the errors.
        model_name: of the model, for the errors.
        keys_in_file: the weights as the file has them, by which a wrong encoder is recognised.

    Raises:
        ValueError: when keys are missing, left over or of another shape; lists them, and guesses whose they are.
    """
    own = model.state_dict()
    missing = [key for key in own if key not in weights and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in weights if key not in own]
    misshaped = [
        f"{key} {list(weights[key].shape)} instead of {list(own[key].shape)}"
        for key in own
        if key in weights and weights[key].shape != own[key].shape
    ]
    refuse_misfits(
        {"missing": missing, "unexpected": unexpected, "of another shape": misshaped}, source, model_name, keys_in_file
    )
    model.load_state_dict(weights, strict=False)


def refuse_misfits(
    misfits: Mapping[str, Sequence[str]], source: str, model_name: str, keys_in_file: Mapping[str, Tensor]
) -> None:
    """Refuses weights of which some keys do not fit; names the first of each kind, and guesses whose they are.

    Args:
        misfits: the keys by what is wrong with them.
        source: the file.
        model_name: of the model that it was to fit.
        keys_in_file: the weights as the file has them.

    Raises:
        ValueError: when there are any.
    """
    found = ", ".join(
        f"{len(keys)} {what} ({', '.join(keys[:_N_TOLD])}{', ...' if len(keys) > _N_TOLD else ''})"
        for what, keys in misfits.items()
        if keys
    )
    if found:
        raise ValueError(f"Expected {source} to hold the weights of {model_name}, got {found}. {_advice(keys_in_file)}")


def _advice(keys_in_file: Mapping[str, Tensor]) -> str:
    names = guess_encoders({key: tuple(value.shape) for key, value in keys_in_file.items()})
    if not names:
        some = ", ".join(list(keys_in_file)[:_N_TOLD])
        return f"Its keys ({some}, ...) are of no encoder known here: give the backbone.model_name they are of."
    return f"Its keys are those of {' or '.join(names)}: give backbone={names[0]}."


def _is_wrapped(content: Mapping[Any, Any], name: str) -> bool:
    inner = content.get(name)
    return isinstance(inner, Mapping) and any(isinstance(value, Tensor | Mapping) for value in inner.values())


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"Expected {path} to hold weights as safetensors, got: {error}.") from error
    if _is_torchscript(path):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch advises against new archives; these are published
            return torch.jit.load(path, map_location="cpu").state_dict()
    return load_checkpoint(path)


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())
