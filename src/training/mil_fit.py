"""Fits one model of bags: on the weights that validation chooses, from where a stopped training left off."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from src.callbacks.patience import Patience
from src.data.feeding.bags import BagDataModule
from src.interrupts import keeping
from src.modules.mil import BagPrediction, MILModule
from src.runs.rundir import RunDir
from src.training.checkpoints import describe_checkpoint
from src.training.trainer import make_trainer

_LOGGER = logging.getLogger(__name__)
# Values of a bag from which a second CPU thread pays. Below, a step is over before the thread has woken: on a busy
# machine a step on a bag of 5 x 166 took 24 ms of CPU time with two threads and 1.7 ms with one.
_VALUES_FOR_THREADS = 50_000
_LAST = "last.ckpt"
_SAVE_EVERY = 60.0  # seconds of training that a kill may cost


class LastCheckpoint(lightning.Callback):
    """Saves where training stands, after an epoch, when it was not saved for a while.

    Args:
        path: of the checkpoint.
        every: seconds.
    """

    def __init__(self, path: Path, every: float) -> None:
        self._path, self._every, self._saved = path, every, time.monotonic()

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:  # noqa: ARG002
        """Saves if it is time."""
        if time.monotonic() - self._saved >= self._every:
            trainer.save_checkpoint(self._path, weights_only=False)
            self._saved = time.monotonic()


def fit_mil(cfg: Any, rundir: RunDir, module: MILModule, data: BagDataModule, n_val: int) -> lightning.Trainer:
    """Trains a module in place; it ends with the weights that were best on validation bags.

    Args:
        cfg: the configuration: `mil`, `trainer`, `fold`.
        rundir: of the task; checkpoints lie in the folder of the module's name.
        module: to be trained.
        data: the bags.
        n_val: the number of validation bags; without any there is nothing to choose by: the last weights are kept.

    Returns:
        The trainer, to predict with.
    """
    mil, folder, monitor = cfg.mil, rundir.checkpoints_dir / module.name, module.monitored if n_val else None
    best = ModelCheckpoint(
        folder, "best", monitor, mode=module.monitor_mode, save_weights_only=True, enable_version_counter=False
    )
    callbacks: list[lightning.Callback] = [LastCheckpoint(folder / _LAST, _SAVE_EVERY), best]
    if monitor is not None:
        limits = (mil.patience, mil.min_epochs, mil.stop_below)
        callbacks.insert(0, Patience(monitor, module.monitor_mode, *limits))
    batches = {"limit_val_batches": 1.0 if n_val else 0, "num_sanity_val_steps": 0, "log_every_n_steps": 1}
    trainer = make_trainer(cfg, rundir, callbacks, part=module.name, max_epochs=mil.max_epochs, **batches)
    data.keep_on(trainer.strategy.root_device)
    start = folder / _LAST if (folder / _LAST).is_file() else None
    if start is not None:
        _LOGGER.info("%s goes on from %s.", module.name, start)
    with threads_for(data.median_values()), keeping(lambda: describe_checkpoint(folder)):
        trainer.fit(module, data, ckpt_path=start)
    if trainer.interrupted:
        raise KeyboardInterrupt("Training was interrupted; start again to go on with it.")
    if not n_val:
        _LOGGER.warning("Fold %s has no validation slides: %s keeps its last weights.", cfg.fold, module.name)
    module.load_state_dict(torch.load(best.best_model_path, map_location="cpu", weights_only=True)["state_dict"])
    score = float("nan") if best.best_model_score is None else float(best.best_model_score)
    _LOGGER.info("%s: %d epochs, best validation %s %.4g.", module.name, trainer.current_epoch, module.monitor, score)
    return trainer


def predict_bags(trainer: lightning.Trainer, module: MILModule, data: BagDataModule) -> list[BagPrediction]:
    """Returns the predictions for validation and test bags.

    Raises:
        ValueError: when a probability is not finite.
    """
    loaders = [loader for loader in (data.val_dataloader(), data.test_dataloader()) if loader]
    with threads_for(data.median_values()):
        predicted: Any = [batch for loader in loaders for batch in trainer.predict(module, loader) or ()]
    predictions: list[BagPrediction] = [prediction for batch in predicted for prediction in batch]
    if spoilt := [one.item_id for one in predictions if not bool(one.probabilities.isfinite().all())]:
        raise ValueError(
            f"Expected finite probabilities of {module.name}, got others for {', '.join(spoilt[:5])} ({len(spoilt)} "
            f"in all): their features are far larger than those of the train items. Look at them."
        )
    return predictions


@contextmanager
def threads_for(n_values: float) -> Iterator[None]:
    """Works on bags of `n_values` values with one CPU thread when they are small."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(n_threads if n_values >= _VALUES_FOR_THREADS else 1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)
