"""Exported SAEs: a folder that SAELens loads, and that gives our own SAE back bit for bit."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from src.activation_spec import ActivationSpec
from src.files import digest_file, digest_text, write_atomically
from src.models.saes.base import SAE
from src.records import FittedItem
from src.stores.modules import (
    FITTED_ON_KEY,
    build,
    describe,
    note_fitted_on,
    read_config,
    read_state,
    write_config,
    write_state,
)

__all__ = ["FITTED_ON_KEY", "digest_export", "load_sae", "saelens_weights", "save_sae"]

_WEIGHTS = "sae_weights.safetensors"
_STATE = "loupe_state.safetensors"
_CONFIG = "cfg.json"


def save_sae(
    sae: SAE,
    export_dir: str | Path,
    metadata: Mapping[str, Any] | None = None,
    fitted: Sequence[FittedItem] | None = None,
    spec: ActivationSpec = ActivationSpec(),  # noqa: B008 - frozen
) -> None:
    """Writes an SAE for use elsewhere.

    `sae_weights.safetensors` and `cfg.json` are SAELens's layout (6.x; architecture "jumprelu" with one threshold per
    neuron, "standard", "topk" or "gated"): weights as [d_in, n_latents] and [n_latents, d_in], and what the inputs
    are standardised by folded into them, so that the file eats raw activations. SAELens normalises rows itself
    (z_score is its layer_norm; a layer_norm with ddof 0 is scaled to it, and differs in the guard of 1e-5). Folding
    rounds; `loupe_state.safetensors` holds the unfolded state that `load_sae` reads.

    Args:
        sae: the SAE.
        export_dir: the folder, made when missing.
        metadata: JSON values to keep with it, e.g. the data set and the fold.
        fitted: the slides that it was fitted on, written to `fitted_on.csv` beside it: leakage can then be told also
            where the export is used elsewhere. None where they are not known.
        spec: of the activations that it was trained on.
    """
    export_dir = Path(export_dir)
    stated = {"spec": spec.to_dict(), **note_fitted_on(export_dir, fitted)}
    write_state(sae, export_dir / _STATE)
    with write_atomically(export_dir / _WEIGHTS) as path:
        save_file(saelens_weights(sae), path)
    config = {
        "architecture": sae.saelens_architecture,
        "d_in": sae.d_in,
        "d_sae": sae.n_latents,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": sae.apply_b_dec_to_input,
        "normalize_activations": "layer_norm" if sae.normalizes_rows else "none",
        "reshape_activations": "none",
        **sae.saelens_settings(),
        "metadata": {**(metadata or {}), **stated, "loupe": describe(sae, sae.init_arguments())},
    }
    write_config(config, export_dir / _CONFIG)


def load_sae(export_dir: str | Path) -> SAE:
    """Reads an SAE that `save_sae` wrote, in evaluation mode on the CPU.

    Raises:
        FileNotFoundError: when a file is missing.
        ValueError: when the folder was not written by Loupe, or its state does not fit its configuration.
    """
    config_path, state_path = Path(export_dir) / _CONFIG, Path(export_dir) / _STATE
    described = read_config(config_path, state_path).get("metadata", {}).get("loupe", {})
    return read_state(build(described, SAE, config_path), state_path)


def digest_export(export_dir: str | Path) -> str:
    """Returns a digest of what `load_sae` reads: another one where the SAE may be another."""
    return digest_text("\n".join(digest_file(Path(export_dir) / name) for name in (_CONFIG, _STATE)))


@torch.no_grad()
def saelens_weights(sae: SAE) -> dict[str, torch.Tensor]:
    """Returns an SAE's weights in SAELens's names, shapes and orientation, with the input statistics folded in.

    With z = (x - mean) / scale and a subtracted decoder bias, b_dec' = b_dec * scale + mean gives
    (x - b_dec') / scale = z - b_dec: only the encoder's columns are divided by the scale, and its bias stays. Where
    b_dec is not subtracted, the mean moves into the encoder's bias instead.
    """
    scale, W_enc, b_enc = sae.input_scale, sae.W_enc, sae.b_enc if sae.use_b_enc else torch.zeros_like(sae.b_enc)
    if sae.input_norm == "layer_norm":  # ddof 0 is a constant factor away from SAELens' ddof 1
        scale = torch.full_like(sae.input_scale, math.sqrt((sae.d_in - 1) / sae.d_in))
    if not sae.apply_b_dec_to_input:
        b_enc = b_enc - W_enc @ (sae.input_mean / scale)
    weights = {
        "W_enc": (W_enc / scale).T,
        "b_enc": b_enc,
        "W_dec": sae.atoms * scale,
        "b_dec": torch.addcmul(sae.input_mean, sae.b_dec, scale),
    }
    weights = sae.saelens_parameters(weights)
    return {name: value.detach().float().cpu().contiguous() for name, value in weights.items()}
