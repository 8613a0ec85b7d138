"""Trains slide classifiers on activations, on latents and on the best neurons, and predicts val and test slides."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import lightning
import numpy as np
import pandas as pd
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from src import config
from src.analysis.cross_validation import fold_metrics
from src.analysis.figures import plot_roc, save_figure
from src.analysis.pooling import pool_items
from src.analysis.selection import best_neuron_ids
from src.analysis.single_neuron import fit_single_neuron
from src.analysis.slide_metrics import METRICS
from src.data.feeding.bag_datamodule import BagDataModule
from src.data.feeding.bags import BagReader, activation_bags, latent_bags
from src.data.feeding.scaled_bags import scaled_bags, scaled_latents
from src.data.fold import FoldData, open_fold
from src.files import write_atomically
from src.modules.mil import BagPrediction, MILModule
from src.report.page import Page, PageFigure, PageTable
from src.runs.rundir import RunDir
from src.stores.latents.store import LatentStore
from src.training.trainer import make_trainer

_LOGGER = logging.getLogger(__name__)
_PAGE_ORDER = 70
_NEURON = "neuron"
"""The method that is no MIL model: the best neuron by itself."""
_INPUTS = ("activations", "latents", "top_neurons")
# Values of a bag from which a second CPU thread pays. Below, a step is over before the thread has woken: on a busy
# machine a step on a bag of 5 x 166 took 24 ms of CPU time with two threads and 1.7 ms with one.
_VALUES_FOR_THREADS = 50_000


def run(cfg: Any, rundir: RunDir) -> dict[str, float]:
    """Writes `analysis/predictions.csv` of every method, `attention/<method>/<item_id>.npy` and the ROC curves.

    Test slides are predicted once, by the weights with the lowest validation loss; they choose nothing.

    Returns:
        `<split>/<method>_<metric>` for val and test, NaN where the slides do not define it.

    Raises:
        ValueError: when a method is unknown, or the SAE or the ranking was fitted on held-out cases.
        FileNotFoundError: when a method needs latents or a ranking that were not made.
    """
    plan = {method: _parse(method, cfg.mil.pools) for method in cfg.mil.methods}
    fold = open_fold(cfg.dataset, cfg.fold, cfg.paths.cache)
    of_csv = ("split train+val+test", "cases train+val+test", "labels train+val+test", "classes")
    rundir.record(*fold.inputs(*of_csv, "activations train+val+test"))
    rundir.write_fitted_on(fold.fitted("train+val"))  # val slides choose the weights
    inputs = _Inputs(cfg, rundir, fold)
    tables = []
    for method, (pool, input_name) in plan.items():
        if method == _NEURON:
            predictions = _predict_by_neuron(inputs, fold)
        else:
            predictions = _train_and_predict(cfg, rundir, method, pool, inputs.read(input_name), fold)
            _write_attention(rundir, method, predictions)
        tables.append(_tabulate(method, predictions, fold))
    table = pd.concat(tables, ignore_index=True)
    table.to_csv(rundir.table("predictions"), index=False)
    metrics = fold_metrics(table.rename(columns={"split": "fold"})).rename(columns={"fold": "split"})
    metrics.to_csv(rundir.table("metrics"), index=False)
    _write_page(cfg, rundir, fold, table)
    rows: list[dict[str, Any]] = metrics.to_dict("records")  # pyright: ignore[reportAssignmentType]
    return {f"{row['split']}/{row['method']}_{name}": row[name] for row in rows for name in METRICS}


def _parse(method: str, pools: Mapping[str, Any]) -> tuple[str, str]:
    """Splits `<pool>_<input>`."""
    if method == _NEURON:
        return _NEURON, _NEURON
    for input_name in _INPUTS:
        pool = method.removesuffix(f"_{input_name}")
        if pool != method and pool in pools:
            return pool, input_name
    raise ValueError(
        f"Expected each of mil.methods to be {_NEURON} or <pool>_<input> with a pool among {list(pools)} and an input "
        f"among {list(_INPUTS)}, got {method!r}."
    )


class _Inputs:
    """What the classifiers look at, opened when a method needs it, and checked for leakage."""

    def __init__(self, cfg: Any, rundir: RunDir, fold: FoldData) -> None:
        self._cfg = cfg
        self._rundir = rundir
        self._fold = fold
        self._held_out = fold.fitted("val+test")

    def read(self, name: str) -> BagReader:
        """Returns the reader of an input's bags."""
        if name == "activations":
            reader, scaled = activation_bags(self._fold.store, self._fold.standardizer), scaled_bags
        else:
            neuron_ids = None if name == "latents" else self.best_neurons(self._cfg.mil.n_top_neurons)
            reader, scaled = latent_bags(self.latents(), neuron_ids), scaled_latents
        return scaled(reader, self._fold.split.train) if self._cfg.mil.scale_inputs else reader

    def latents(self) -> LatentStore:
        """Returns the fold's latents."""
        return LatentStore(self._trusted("encode").latents_dir())

    def best_neurons(self, n: int) -> list[int]:
        """Returns the best neurons of the fold's ranking."""
        return best_neuron_ids(pd.read_csv(self._trusted("select_neurons").table("neurons")), n)

    def _trusted(self, task: str) -> RunDir:
        upstream = self._rundir.upstream(task)
        self._rundir.refuse_leakage(upstream, self._held_out)
        return upstream


def _train_and_predict(
    cfg: Any, rundir: RunDir, method: str, pool: str, read: BagReader, fold: FoldData
) -> list[BagPrediction]:
    """Trains one model on the train slides and predicts the val and test slides."""
    lightning.seed_everything(cfg.seed, workers=True, verbose=False)  # a method's result does not depend on the others
    labels = {item_id: fold.label_index(item_id) for item_id in fold.split.item_ids("train+val+test")}
    mil = cfg.mil
    data = BagDataModule(read, fold.split, labels, cfg.seed, mil.batch_size)
    d_in = data.train_bags[0].bag.shape[1]
    model = config.instantiate(mil.pools[pool], d_in=d_in, n_classes=len(fold.classes))
    module = MILModule(model, mil.lr, mil.weight_decay, method)
    best = ModelCheckpoint(
        dirpath=rundir.checkpoints_dir / method,
        filename="best",
        save_weights_only=True,
        enable_version_counter=False,
        # Without validation slides there is nothing to choose by: the last weights are kept.
        monitor=module.monitored if fold.split.val else None,
    )
    stop = EarlyStopping(module.monitored, patience=mil.patience, stopping_threshold=mil.stop_below)
    trainer = make_trainer(
        cfg,
        rundir,
        [best, stop] if fold.split.val else [best],
        max_epochs=mil.max_epochs,
        min_epochs=min(mil.min_epochs, mil.max_epochs),
        limit_val_batches=1.0 if fold.split.val else 0,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
    )
    with _threads_for(np.median([bag.bag.numel() for bag in data.train_bags])):
        trainer.fit(module, data)
    if trainer.interrupted:
        raise KeyboardInterrupt("Training was interrupted; start again to train the classifiers.")
    if not fold.split.val:
        _LOGGER.warning("Fold %d has no validation slides: %s keeps its last weights.", cfg.fold, method)
    weights = torch.load(best.best_model_path, map_location="cpu", weights_only=True)["state_dict"]
    module.load_state_dict(weights)
    loaders = [loader for loader in (data.val_dataloader(), data.test_dataloader()) if loader]
    batches = [batch for loader in loaders for batch in trainer.predict(module, loader)]  # pyright: ignore
    _LOGGER.info("%s: %d epochs, best validation loss %.4g.", method, trainer.current_epoch, _loss(best))
    predictions: list[BagPrediction] = [prediction for batch in batches for prediction in batch]  # pyright: ignore
    if spoilt := [one.item_id for one in predictions if not bool(one.probabilities.isfinite().all())]:
        raise ValueError(
            f"Expected finite probabilities of {method}, got others for slides {', '.join(spoilt[:5])} ({len(spoilt)} "
            f"in all): their features are far larger than those of the train slides. Look at them."
        )
    return predictions


@contextmanager
def _threads_for(n_values: float) -> Iterator[None]:
    """Trains on bags of `n_values` values with one CPU thread when they are small."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(n_threads if n_values >= _VALUES_FOR_THREADS else 1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)


def _loss(best: ModelCheckpoint) -> float:
    return float("nan") if best.best_model_score is None else float(best.best_model_score)


def _predict_by_neuron(inputs: _Inputs, fold: FoldData) -> list[BagPrediction]:
    """Predicts from the best neuron, of more than two classes from each class's best."""
    latents = inputs.latents()
    neuron_ids = inputs.best_neurons(1 if len(fold.classes) == 2 else len(fold.classes))

    def maxima(item_ids: tuple[str, ...]) -> np.ndarray:
        pieces = ((codes, rows.columns(neuron_ids).numpy()) for codes, rows in latents.read(item_ids))
        return pool_items(pieces, item_ids).maxima

    labels = [fold.label_index(item_id) for item_id in fold.split.train]
    classifier = fit_single_neuron(maxima(fold.split.train), labels)
    item_ids = fold.split.item_ids("val+test")
    probabilities = torch.from_numpy(classifier.predict_proba(maxima(item_ids)))
    return [BagPrediction(item_id, row, None) for item_id, row in zip(item_ids, probabilities, strict=True)]


def _write_attention(rundir: RunDir, method: str, predictions: list[BagPrediction]) -> None:
    for prediction in predictions:
        if prediction.attention is not None:
            with write_atomically(rundir.path / "attention" / method / f"{prediction.item_id}.npy") as temporary:
                np.save(temporary, prediction.attention.numpy())


def _tabulate(method: str, predictions: list[BagPrediction], fold: FoldData) -> pd.DataFrame:
    part_of = {item_id: part for part in ("val", "test") for item_id in fold.split.item_ids(part)}
    rows = []
    for prediction in predictions:
        slide = fold.items[prediction.item_id]
        known = (method, part_of[slide.item_id], slide.item_id, slide.case_id, slide.label)
        rows.append((*known, *prediction.probabilities.tolist()))
    probability_columns = [f"prob_{name}" for name in fold.classes]
    return pd.DataFrame(rows, columns=["method", "split", "item_id", "case_id", "label", *probability_columns])


def _write_page(cfg: Any, rundir: RunDir, fold: FoldData, table: pd.DataFrame) -> None:
    figures = []
    test_labels = {fold.items[item_id].label for item_id in fold.split.test}
    for name in fold.classes if len(fold.classes) > 2 else fold.classes[-1:]:
        if name not in test_labels or len(test_labels) < 2:
            _LOGGER.warning("No ROC curve of %s: the test slides of fold %d are of %s.", name, cfg.fold, test_labels)
            continue
        plot = rundir.plot("roc" if len(fold.classes) == 2 else f"roc_{name}")
        save_figure(plot_roc(table, name), plot)
        figures.append(PageFigure(plot, f"Slide-level ROC on {len(fold.split.test)} test slides, {name} positive."))
    rundir.write_page(
        Page(
            title="Slide classifiers",
            order=_PAGE_ORDER,
            paragraphs=(
                f"Trained on {len(fold.split.train)} slides; the weights with the lowest loss on "
                f"{len(fold.split.val)} validation slides predict {len(fold.split.test)} test slides. Top neurons: the "
                f"{cfg.mil.n_top_neurons} best of the ranking made on train slides; neuron: the best one alone, "
                "logistic regression on its maximum over the slide.",
            ),
            figures=tuple(figures),
            tables=(PageTable(rundir.table("metrics"), "Metrics on validation and test slides.", 30),),
        )
    )
