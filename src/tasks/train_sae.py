"""Trains the SAE of a fold on the activations of its train slides, and exports it."""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import lightning
import numpy as np
import pandas as pd
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from src import config
from src.analysis.archetypes import kmeans_centres
from src.analysis.figures import plot_training_curves
from src.callbacks.slide_mixing import SlideMixing
from src.data.current_inputs import CurrentInputs
from src.data.feeding.activations import ActivationDataModule
from src.data.feeding.rows import rows_an_item
from src.data.fold import FoldData, open_fold
from src.data.streamed_fold import StreamedFold
from src.inference import choose_device
from src.interrupts import keeping
from src.models.saes.archetypal import Archetypal
from src.models.saes.base import SAE
from src.modules.sae import SAEModule
from src.prefetch import prefetch
from src.report.doubts import SD_RATIO_KEY, warn_of_doubts
from src.report.page import Page
from src.runs.rundir import RunDir
from src.tasks.streaming import EMBED_FIRST, open_stream
from src.tasks.trained_saes import BATCH_ROWS, Trained, TrainFold, columns_of, export, reads_in_order
from src.tasks.upstream_sae import chooses_screening
from src.training.checkpoints import Position, StepCheckpoints, describe_checkpoint, newest_checkpoint
from src.training.loop_state import LoopState
from src.training.trainer import make_trainer
from src.wording import words_of

_LOGGER = logging.getLogger(__name__)
# Keys of `train` that are arguments of ActivationDataModule, and of SAEModule.
DATA_KEYS = ("batch_size", "block_size", "residency", "n_workers", "batch_unit", "n_tokens", "epochs", "total_rows")
_RATE_KEYS = ("lr", "betas", "warmup_steps", "warmup_from_zero", "warmup_every", "decay_fraction")
_MODULE_KEYS = (*_RATE_KEYS, "max_grad_norm", "compile_backend")


def run(cfg: Any, rundir: RunDir) -> dict[str, float]:
    """Trains, resuming from the newest checkpoint when there is one, and exports the last weights.

    Returns:
        The validation metrics of the exported SAE, and the size of what it was trained on.
    """
    fold = open_train_fold(cfg)
    record_train_inputs(cfg, rundir, fold)
    rundir.write_fitted_on(fold.fitted("train"))
    data = open_data(cfg, fold)
    start = newest_checkpoint(rundir.checkpoints_dir)
    module = build_module(cfg, fold, data, is_resumed=start is not None)
    arguments = fit_arguments(cfg, data)
    callbacks = [LoopState(), SlideMixing(), *best_and_last(ModelCheckpoint, rundir, fold, arguments)]
    callbacks.append(StepCheckpoints([rundir.checkpoints_dir], data.checkpoint_steps))
    trainer = make_trainer(cfg, rundir, callbacks, **arguments)
    with keeping(lambda: describe_checkpoint(rundir.checkpoints_dir)):
        measured = fit(trainer, module, data, [Trained(cfg, rundir, fold, module.sae)], start)
    return finish_training(cfg, rundir, fold, data, module.sae, measured)


def open_train_fold(cfg: Any) -> TrainFold:
    """Opens the configured fold: its feature files, or with train.residency=stream its slides and the backbone."""
    if isinstance(cfg.backbone.get("layer"), Sequence) and not isinstance(cfg.backbone.layer, str):
        raise ValueError(
            f"Expected one backbone.layer to train an SAE on, got {list(cfg.backbone.layer)}: give one, or train one "
            "SAE a layer with task=train_sae_sweep train.residency=stream \"sweep.grid=['backbone.layer=2,5']\"."
        )
    return open_stream(cfg) if cfg.train.residency == "stream" else open_fold(cfg)


def record_train_inputs(cfg: Any, rundir: RunDir, fold: TrainFold) -> None:
    """Notes what training on a fold reads."""
    read = CurrentInputs(cfg).read
    if isinstance(fold, FoldData):
        read, rows = fold.inputs, ("activations train+val",)
    elif cfg.dataset.get("images_dir") is not None:
        rows = ("images train+val", "weights")
    else:
        rows = ("slides train+val", "patches train+val", "weights")
    rundir.record(*read("split train+val", "cases train+val", *rows))


def open_data(cfg: Any, fold: TrainFold) -> ActivationDataModule:
    """Returns the activations of a fold as the configuration feeds them."""
    options = {key: cfg.train[key] for key in DATA_KEYS}
    rows = fold.rows("train"), fold.rows("val")
    if options["batch_unit"] == "images" and options["n_tokens"] is None:
        options["n_tokens"] = rows_an_item(rows[0])
    return ActivationDataModule(*rows, seed=cfg.seed, n_checkpoints=cfg.train.checkpoints, **options)


def fit_arguments(cfg: Any, data: ActivationDataModule) -> dict[str, Any]:
    """Returns the Trainer's arguments of a training of SAEs."""
    n_epochs = data.length.n_epochs
    every = max(1, n_epochs // cfg.train.n_validations)
    fixed = {"num_sanity_val_steps": 0, "log_every_n_steps": 1, "limit_val_batches": 1.0 if data.val_rows.n_rows else 0}
    return {"max_epochs": n_epochs, "check_val_every_n_epoch": every, **fixed}


def fit(
    trainer: lightning.Trainer,
    module: lightning.LightningModule,
    data: ActivationDataModule,
    trained: Sequence[Trained],
    start: Position | None,
) -> dict[str, float]:
    """Trains a module from a checkpoint or the start, exports its SAEs, and returns what its validation gives.

    The numbers are those of what was exported, not of the last epoch's threshold.
    """
    trainer.fit(module, data, ckpt_path=start and start.path)
    if trainer.interrupted:
        raise KeyboardInterrupt("Training was interrupted; start again to resume it.")
    export(data, trained)
    (measured,) = trainer.validate(module, data, verbose=False) if trained[0].fold.split.val else ({},)
    return dict(measured)


def finish_training(
    cfg: Any, rundir: RunDir, fold: TrainFold, data: ActivationDataModule, sae: SAE, measured: Mapping[str, float]
) -> dict[str, float]:
    """Writes the page of a trained SAE and returns its results; `measured` is what its validation gave."""
    results = {key: float(value) for key, value in measured.items() if key.startswith("val/")}
    results |= {"n_train_rows": data.train_rows.n_rows, "n_steps": data.length.n_steps, "d_in": sae.d_in}
    results |= {"n_latents": sae.n_latents, "threshold": float(sae.inference_threshold.mean())}
    results["screening"] = sae.screening
    if isinstance(fold, FoldData) and fold.standardizer is None and not sae.normalizes_rows:
        results[SD_RATIO_KEY] = _largest_sd_over_median(fold, cfg.seed)
    words = words_of(cfg.dataset)
    caption = "Training. The last validation is that of the exported SAE, its threshold calibrated."
    rundir.add_figure("curves", plot_training_curves(pd.read_csv(rundir.metrics_path)), caption)
    text = (
        f"{type(sae).__name__} with {sae.n_latents} latents on activations of {sae.d_in} dimensions, trained on "
        f"{results['n_train_rows']:,} {words.rows} of {len(fold.split.train)} train {words.items} in "
        f"{results['n_steps']:,} optimizer steps. Explained variance is about the mean, over the whole validation set."
    )
    numbers = {key: value for key, value in results.items() if key.startswith("val/")}
    rundir.write_page(Page("Sparse autoencoder", [*warn_of_doubts(cfg, results), text], numbers))
    return results


def build_module(cfg: Any, fold: TrainFold, data: ActivationDataModule, is_resumed: bool) -> SAEModule:
    """Returns the configured SAE, ready to be trained; what a checkpoint will bring is not fitted."""
    sae: SAE = config.instantiate(cfg.sae, d_in=fold.d_in)
    if isinstance(sae, Archetypal) and isinstance(fold, StreamedFold):
        raise ValueError(
            "Expected another SAE than sae=archetypal with train.residency=stream: its points are k-means centres of "
            f"packed activations. Give another sae=<name>, or {EMBED_FIRST}."
        )
    if fold.standardizer is not None:
        mean, scale = (torch.from_numpy(values) for values in (fold.standardizer.mean, fold.standardizer.scale))
        sae.set_input_statistics(mean, scale)
    # A checkpoint holds what these are fitted to.
    if sae.input_norm in ("centre", "global_scale") and not is_resumed:
        _LOGGER.info("Reading all train rows once for sae.input_norm=%s.", sae.input_norm)
        reads = reads_in_order(data.train_rows, columns_of(fold))
        sae.fit_input_norm_(prefetch(reads, data.n_workers, data.n_workers))
    if isinstance(sae, Archetypal) and isinstance(fold, FoldData) and not is_resumed:
        rows = fold.store.row_ids(fold.split.train)
        sae.set_points(torch.from_numpy(kmeans_centres(fold.store.gather, rows, sae.n_points, cfg.seed)))
    device = choose_device(cfg.trainer.accelerator, cfg.trainer.devices)
    sae.screening = chooses_screening(cfg, sae, device)
    options = {key: cfg.train[key] for key in _MODULE_KEYS}
    return SAEModule(sae, total_steps=data.length.n_steps, steps_per_epoch=data.length.steps_per_epoch, **options)


def best_and_last(
    checkpoint: Callable[..., lightning.Callback], rundir: RunDir, fold: TrainFold, arguments: Mapping[str, Any]
) -> list[lightning.Callback]:
    """Keeps the last state, to resume, and with validation slides the best one by explained variance.

    Two callbacks: `save_last` of one that keeps the best writes the last state only when it is also the best so far,
    and never without a monitor. The best one comes first, so that the last state knows of it.

    Args:
        checkpoint: makes one, of ModelCheckpoint's arguments.
        rundir: the run's directory.
        fold: what is trained on.
        arguments: of the Trainer.
    """
    has_validation = bool(fold.split.val)
    keep = partial(
        checkpoint,
        dirpath=rundir.checkpoints_dir,
        every_n_epochs=arguments["check_val_every_n_epoch"],
        enable_version_counter=False,
        save_on_train_epoch_end=not has_validation,
    )
    best = [keep(filename="best", monitor="val/explained_variance", mode="max")] if has_validation else []
    return [*best, keep(filename="last")]


def _largest_sd_over_median(fold: FoldData, seed: int) -> float:
    """Returns the largest deviation of a feature over the median one of those that vary, on a sample of train rows."""
    rows = fold.store.row_ids(fold.split.train)
    sample = np.random.default_rng(seed).choice(rows, min(len(rows), BATCH_ROWS), replace=False)
    deviation = fold.store.gather(np.sort(sample)).astype(np.float64).std(axis=0)
    return float(deviation.max() / np.median(deviation[deviation > 0])) if deviation.any() else 1.0
