"""Builds what a task would build once the data are read, without data and memory, to hear early what is refused."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Set
from typing import Any

from src.checks.wandb_account import has_wandb_account

# Wide enough for any sae.k that is meant; on the meta device it costs nothing.
_WIDTH = 2**16
# What the SAE's own optimizer steps and its calibration work in.
_PRECISIONS = ("32-true", "32", 32, "bf16-mixed")


def trial_errors(config: Mapping[str, Any], groups: Set[str], build: Callable[..., Any]) -> Iterator[str]:
    """Yields what the constructors of a task that trains refuse: the SAE's, the Trainer's, torch.compile's and W&B's.

    Args:
        config: a plain, resolved configuration whose values are of the right kinds.
        groups: those that shape what the task itself makes.
        build: makes the object that a config node names by `_target_`; raises ValueError for what it refuses.
    """
    if "sae" in groups:
        yield from _sae_errors(config, build)
    if "trainer" in groups and groups & {"train", "mil"}:
        yield from _trainer_errors(config, build)
    yield from _account_errors(config)


def _sae_errors(config: Mapping[str, Any], build: Callable[..., Any]) -> Iterator[str]:
    import torch  # kept out of the commands that train nothing

    try:
        with torch.device("meta"):
            build(config["sae"], d_in=_WIDTH)
    except ValueError as error:
        yield f"sae: {error}"
    backend = config["train"]["compile_backend"]
    if backend is not None and backend not in (known := torch.compiler.list_backends(exclude_tags=())):
        yield f"train.compile_backend: expected null or one of {', '.join(known)}, got {backend!r}"
    if (precision := config["trainer"].get("precision")) not in _PRECISIONS:
        yield f"trainer.precision: expected 32-true or bf16-mixed, got {precision!r}"


def _trainer_errors(config: Mapping[str, Any], build: Callable[..., Any]) -> Iterator[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the Trainer that trains says them again
            build(config["trainer"], logger=False, enable_checkpointing=False, enable_progress_bar=False)
    except ValueError as error:
        yield f"trainer: {error}"


def _account_errors(config: Mapping[str, Any]) -> Iterator[str]:
    options = config["logger"].get("wandb")
    if options is None or options["offline"]:
        return
    if not has_wandb_account():
        yield (
            "logger: expected an account for logger=wandb, found none: type `wandb login`, set WANDB_API_KEY, or give "
            "logger.wandb.offline=true"
        )
