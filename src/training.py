"""Builds the Lightning Trainer of a run: loggers, progress, where it writes."""

import sys
from collections.abc import Sequence
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import RichProgressBar

from src import config
from src.callbacks.plain_progress import PlainProgress
from src.files import digest_text
from src.modules.metrics_csv import MetricsCsv
from src.rundir import RunDir


def make_trainer(
    cfg: Any, rundir: RunDir, callbacks: Sequence[lightning.Callback] = (), **arguments: Any
) -> lightning.Trainer:
    """Builds a Trainer that logs metrics.csv, and to W&B or TensorBoard when the config has them.

    Args:
        cfg: the run's configuration: `trainer`, `logger`.
        rundir: the run's directory.
        callbacks: the task's own.
        **arguments: of the Trainer, e.g. `max_epochs`.
    """
    torch.set_float32_matmul_precision(cfg.train.float32_matmul_precision)
    loggers: list[Any] = [MetricsCsv(rundir.metrics_path)]
    if "wandb" in cfg.logger:
        # A resumed run continues the same W&B run.
        identity = digest_text(str(rundir.path), 16)
        name = f"{cfg.name}/fold_{cfg.fold}/{cfg.task.name}"
        loggers.append(
            config.instantiate(cfg.logger.wandb, save_dir=str(rundir.path), id=identity, name=name, resume="allow")
        )
    if "tensorboard" in cfg.logger:
        loggers.append(config.instantiate(cfg.logger.tensorboard, save_dir=str(rundir.path), name="tensorboard"))
    progress = RichProgressBar() if sys.stderr.isatty() else PlainProgress()
    return config.instantiate(
        cfg.trainer,
        default_root_dir=str(rundir.path),
        logger=loggers,
        callbacks=[*callbacks, progress],
        enable_progress_bar=isinstance(progress, RichProgressBar),
        **arguments,
    )
