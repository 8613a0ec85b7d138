"""Builds the Lightning Trainer of a run: loggers, progress, processes, where it writes."""

import logging
import sys
from collections.abc import Sequence
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.loggers.logger import Logger

from src import config
from src.callbacks.plain_progress import PlainProgress
from src.checks.devices import n_devices
from src.files import digest_text
from src.runs.rundir import RunDir
from src.training.checkpoints import AtomicCheckpointIO
from src.training.ddp import SharedBatches
from src.training.metrics_csv import MetricsCsv

_LOGGER = logging.getLogger(__name__)

# The tasks whose modules can share batches among processes.
_TASKS_OF_SEVERAL_PROCESSES = ("train_sae",)


def make_trainer(
    cfg: Any,
    rundir: RunDir,
    callbacks: Sequence[lightning.Callback] = (),
    loggers: Sequence[Logger] | None = None,
    **arguments: Any,
) -> lightning.Trainer:
    """Builds a Trainer that logs metrics.csv, and to W&B or TensorBoard when the config has them.

    With several `trainer.devices`, each has a process of its own where the task can share batches among them; other
    tasks take one.

    Args:
        cfg: the run's configuration: `trainer`, `logger`.
        rundir: the run's directory.
        callbacks: the task's own.
        loggers: in place of `make_loggers(cfg, rundir)`.
        **arguments: of the Trainer, e.g. `max_epochs`.

    Raises:
        ValueError: when several processes are asked for where they cannot be had.
    """
    torch.set_float32_matmul_precision(cfg.train.float32_matmul_precision)
    progress = RichProgressBar() if sys.stderr.isatty() else PlainProgress()
    return config.instantiate(
        cfg.trainer,
        default_root_dir=str(rundir.path),
        logger=make_loggers(cfg, rundir) if loggers is None else loggers,
        callbacks=[*callbacks, progress],
        enable_progress_bar=isinstance(progress, RichProgressBar),
        **{"plugins": [AtomicCheckpointIO()], **arguments, **_process_arguments(cfg)},
    )


def make_loggers(cfg: Any, rundir: RunDir) -> list[Logger]:
    """Builds the loggers of a run."""
    loggers: list[Logger] = [MetricsCsv(rundir.metrics_path)]
    if "wandb" in cfg.logger:
        # A resumed run continues the same W&B run.
        identity = digest_text(str(rundir.path), 16)
        name = f"{cfg.name}/fold_{cfg.fold}/{cfg.task.name}"
        loggers.append(
            config.instantiate(cfg.logger.wandb, save_dir=str(rundir.path), id=identity, name=name, resume="allow")
        )
    if "tensorboard" in cfg.logger:
        loggers.append(config.instantiate(cfg.logger.tensorboard, save_dir=str(rundir.path), name="tensorboard"))
    return loggers


def _process_arguments(cfg: Any) -> dict[str, Any]:
    n_processes = n_devices(cfg.trainer.accelerator, cfg.trainer.devices)
    if n_processes == 1:
        return {}
    if cfg.task.name not in _TASKS_OF_SEVERAL_PROCESSES:
        _LOGGER.info("%s takes one device of trainer.devices=%s.", cfg.task.name, cfg.trainer.devices)
        devices = cfg.trainer.devices
        return {"devices": 1 if isinstance(devices, int | str) else [devices[0]]}
    # The data module itself gives each process its rows.
    return {"strategy": SharedBatches(), "use_distributed_sampler": False}
