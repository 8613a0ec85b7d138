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
from src.runs.rundir import RunDir
from src.runs.tracked_metrics import WHOLE
from src.runs.tracking import note_part
from src.training.checkpoints import AtomicCheckpointIO
from src.training.ddp import SharedBatches
from src.training.metrics_csv import MetricsAtCheckpoints, MetricsCsv
from src.training.trackers import PartLogger

_LOGGER = logging.getLogger(__name__)

# The tasks whose modules can share batches among processes.
_TASKS_OF_SEVERAL_PROCESSES = ("train_sae",)


def make_trainer(
    cfg: Any,
    rundir: RunDir,
    callbacks: Sequence[lightning.Callback] = (),
    loggers: Sequence[Logger] | None = None,
    part: str = WHOLE,
    **arguments: Any,
) -> lightning.Trainer:
    """Builds a Trainer that logs metrics.csv, which W&B is told from, and to TensorBoard when the config has it.

    With several `trainer.devices`, each has a process of its own where the task can share batches among them; other
    tasks take one.

    Args:
        cfg: the run's configuration: `trainer`, `logger`.
        rundir: the run's directory.
        callbacks: the task's own.
        loggers: in place of `make_loggers(cfg, rundir, part)`.
        part: the name of a model that shares the run with others, and that its metrics have: `val/<part>_loss`.
        **arguments: of the Trainer, e.g. `max_epochs`.

    Raises:
        ValueError: when several processes are asked for where they cannot be had.
    """
    torch.set_float32_matmul_precision(cfg.train.float32_matmul_precision)
    progress = RichProgressBar() if sys.stderr.isatty() else PlainProgress()
    return config.instantiate(
        cfg.trainer,
        default_root_dir=str(rundir.path),
        logger=make_loggers(cfg, rundir, part) if loggers is None else loggers,
        callbacks=[*callbacks, MetricsAtCheckpoints(), progress],
        enable_progress_bar=isinstance(progress, RichProgressBar),
        **{"plugins": [AtomicCheckpointIO()], **arguments, **_process_arguments(cfg)},
    )


def make_loggers(cfg: Any, rundir: RunDir, part: str = WHOLE) -> list[Logger]:
    """Builds the loggers of a run, or of a model that shares it; see `make_trainer`."""
    if part != WHOLE:
        note_part(rundir, part)
    loggers: list[Any] = [MetricsCsv(rundir.metrics_path)]
    if "tensorboard" in cfg.logger:
        options = {"save_dir": str(rundir.path), "name": "tensorboard", "version": part}
        loggers.append(PartLogger(part, config.instantiate(cfg.logger.tensorboard, **options)))
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
