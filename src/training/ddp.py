"""Trains a module in several processes of this machine, each with its rows of the same batches."""

import logging
import logging.handlers
import multiprocessing
import os
from collections.abc import Callable
from typing import Any

import lightning
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers.multiprocessing import _MultiProcessingLauncher
from torch.multiprocessing.spawn import ProcessRaisedException

from src.worker_processes import end_with_parent, kill_workers


class SharedBatches(DDPStrategy):
    """Several processes, started for a fit or a validation and ended with it; the one that starts them waits.

    So locks, logs, manifests and exports stay with one process. It receives the trained weights, the metrics and
    the trainer's progress. Only rank 0 logs and writes checkpoints. Gloo connects processes on CPUs, NCCL on GPUs.

    Parameters and buffers are rank 0's at the start. Gradients are not exchanged here: DistributedDataParallel expects
    one backward pass per training step, and `SAEModule` makes many and sums its gradients itself
    (`src.ops.processes`). A module that does not must not be trained with this.

    Raises:
        ValueError: when processes were started from outside already, by torchrun or as several SLURM tasks.
    """

    def __init__(self) -> None:
        n_tasks = max(int(os.environ.get(name, "1")) for name in ("SLURM_NTASKS", "WORLD_SIZE"))
        if n_tasks > 1 or "LOCAL_RANK" in os.environ:
            raise ValueError(
                f"Expected one process, which starts those of trainer.devices itself, got {n_tasks} started from "
                "outside: start it without torchrun, and as one SLURM task (--ntasks=1) on one node."
            )
        super().__init__(cluster_environment=LightningEnvironment(), start_method="spawn")

    def configure_ddp(self) -> None:
        """Gives all processes rank 0's parameters and buffers, where Lightning's would wrap the module."""
        if self.model is None:
            raise ValueError("Expected a module to train, got none.")
        for tensor in (*self.model.parameters(), *self.model.buffers()):
            torch.distributed.broadcast(tensor.data, 0)

    def _configure_launcher(self) -> None:
        self._launcher = _Launcher(self)


class _Launcher(_MultiProcessingLauncher):
    """Also brings log records, a user's mistakes and the trainer's progress back to the process that waits."""

    def launch(
        self, function: Callable[..., Any], *args: Any, trainer: lightning.Trainer | None = None, **kwargs: Any
    ) -> Any:
        context = multiprocessing.get_context("spawn")
        self._records, self._errors = context.Queue(), context.SimpleQueue()
        self._level = logging.getLogger().level
        listener = logging.handlers.QueueListener(self._records, _Relay())
        has_port = "MASTER_PORT" in os.environ
        listener.start()
        try:
            return super().launch(function, *args, trainer=trainer, **kwargs)
        except ProcessRaisedException as error:
            if self._errors.empty():
                raise
            raise self._errors.get() from error
        except (KeyboardInterrupt, SystemExit):
            kill_workers()  # which Python would wait for at its end
            raise
        finally:
            listener.stop()
            del self._records, self._errors
            if not has_port:
                os.environ.pop("MASTER_PORT", None)

    def _wrapping_function(self, process_idx: int, *args: Any, **kwargs: Any) -> None:
        end_with_parent()
        root = logging.getLogger()
        root.handlers = [logging.handlers.QueueHandler(self._records)]
        logging.getLogger("lightning.fabric").setLevel(logging.WARNING)  # a line per process and start
        root.setLevel(self._level if process_idx == 0 else max(self._level, logging.WARNING))
        try:
            super()._wrapping_function(process_idx, *args, **kwargs)
        except (ValueError, OSError) as error:
            self._errors.put(error)
            raise

    def get_extra_results(self, trainer: lightning.Trainer) -> dict[str, Any]:
        return super().get_extra_results(trainer) | {"fit_loop": trainer.fit_loop.state_dict()}

    def update_main_process_results(self, trainer: lightning.Trainer, extra: dict[str, Any]) -> None:
        super().update_main_process_results(trainer, extra)
        trainer.fit_loop.load_state_dict(extra["fit_loop"])


class _Relay(logging.Handler):
    """Hands another process's records to this one's loggers."""

    def emit(self, record: logging.LogRecord) -> None:
        logging.getLogger(record.name).handle(record)
