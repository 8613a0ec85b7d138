"""The trained SAE that a task builds on, checked against the fold it is used on."""

from typing import Any

import torch

from src.activation_spec import require_same_spec
from src.data.fold import FoldData
from src.inference import Inference, choose_device
from src.models.saes.base import SAE
from src.ops.screening import is_worthwhile
from src.runs.rundir import RunDir
from src.stores.modules import read_spec
from src.stores.sae import load_sae


def open_upstream_sae(rundir: RunDir, fold: FoldData, held_out: str) -> SAE:
    """Loads the fold's SAE.

    Args:
        rundir: of the task.
        fold: what the SAE is used on.
        held_out: the part or union of parts that it must not have been fitted on; "" for none.

    Raises:
        FileNotFoundError: when there is no finished training.
        ValueError: when the SAE was fitted on held-out cases, or takes activations of another width.
    """
    trained = rundir.upstream("train_sae")
    if held_out:
        rundir.refuse_leakage(trained, fold.fitted(held_out))
    sae, spec = load_sae(trained.export_dir), read_spec(trained.export_dir)
    remedy = "Train an SAE on these activations, or give another sae_run=<run>."
    require_same_spec(spec, f"the SAE in {trained.path}", fold.spec, str(fold.folder.path), remedy)
    if sae.d_in != fold.store.d_in:
        raise ValueError(
            f"Expected activations of the {sae.d_in} dimensions that the SAE in {trained.path} takes, got "
            f"{fold.store.d_in} in {fold.folder.path}: train an SAE on these features, or give another sae_run=<run>."
        )
    return sae


def open_inference(cfg: Any, *saes: SAE) -> Inference:
    """Moves SAEs to the trainer's device, and returns what runs them there at the trainer's precision."""
    torch.set_float32_matmul_precision(cfg.train.float32_matmul_precision)
    inference = Inference(choose_device(cfg.trainer.accelerator, cfg.trainer.devices), cfg.trainer.precision)
    for sae in saes:
        sae.to(inference.device)
        sae.screening = chooses_screening(cfg, sae, inference.device)
    return inference


def chooses_screening(cfg: Any, sae: SAE, device: torch.device) -> bool:
    """Whether `train.screening` lets an SAE screen on a device.

    It never does at half precision. With `auto`, what torch.compile compiles does not: it has no kernels for it.
    """
    if not str(cfg.trainer.precision).startswith("32"):
        return False
    if cfg.train.screening != "auto":
        return cfg.train.screening in ("on", True)
    return cfg.train.compile_backend is None and is_worthwhile(device, sae.d_in, sae.n_latents)


def require_same_sae(rundir: RunDir, fitted: RunDir) -> None:
    """Refuses a run whose neurons are those of another SAE than this one's.

    Raises:
        ValueError: when it was made with another.
    """
    trained = rundir.upstream("train_sae")
    digest = (trained.read_manifest() or {}).get("digest")
    ancestors = (fitted.read_manifest() or {}).get("ancestors", {})
    if digest not in ancestors.values():
        raise ValueError(
            f"Expected {fitted.path} to be made with the SAE in {trained.path}, got one that was made with another: "
            "neurons of different SAEs have nothing in common. Give sae_run=<the run of its SAE>."
        )
