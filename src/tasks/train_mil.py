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
from src.analysis.figures import plot_roc
from src.analysis.methods import NEURON, Method, parse_methods, write_methods
from src.analysis.pooling import pool_items
from src.analysis.selection import best_neuron_ids
from src.analysis.single_neuron import fit_single_neuron
from src.analysis.slide_metrics import METRICS
from src.data.feeding.bags import BagDataModule, BagReader, activation_bags, activation_scale, latent_bags, latent_scale
from src.data.fold import FoldData, open_fold, tabulate_predictions
from src.files import write_atomically
from src.models.mil.classifier import BagClassifier, MaximaRegression
from src.modules.mil import BagPrediction, MILModule
from src.report.page import Page
from src.runs.rundir import RunDir
from src.stores.latents.store import LatentStore
from src.stores.modules import describe, save_module
from src.training.trainer import make_trainer
from src.wording import words_of

_LOGGER = logging.getLogger(__name__)
# Values of a bag from which a second CPU thread pays. Below, a step is over before the thread has woken: on a busy
# machine a step on a bag of 5 x 166 took 24 ms of CPU time with two threads and 1.7 ms with one.
_VALUES_FOR_THREADS = 50_000


def run(cfg: Any, rundir: RunDir) -> dict[str, float]:
    """Writes `analysis/predictions.csv` of every method, `attention/<method>/<item_id>.npy` and the ROC curves.

    `analysis/methods.csv` says what the methods are, and `export/<method>/` keeps each as a `BagClassifier`.

    Test slides are predicted once, by the weights with the lowest validation loss; they choose nothing.

    Returns:
        `<split>/<method>_<metric>` for val and test, NaN where the slides do not define it.

    Raises:
        ValueError: when a method is unknown, or the SAE or the ranking was fitted on held-out cases.
        FileNotFoundError: when a method needs latents or a ranking that were not made.
    """
    methods = parse_methods(cfg.mil.methods, cfg.mil.pools)
    fold = open_fold(cfg).of_labelled()
    of_csv = ("split train+val+test", "cases train+val+test", "labels train+val+test", "classes")
    rundir.record(*fold.inputs(*of_csv, "activations train+val+test"))
    rundir.write_fitted_on(fold.fitted("train+val"))  # val slides choose the weights
    inputs = _Inputs(cfg, rundir, fold)
    tables = []
    for name, method in methods.items():
        if name == NEURON:
            predictions, classifier, arguments = _predict_by_neuron(inputs, fold)
        else:
            predictions, classifier, arguments = _train_and_predict(cfg, rundir, method, inputs, fold)
            _write_attention(rundir, name, predictions)
        _export(cfg, rundir, name, classifier, arguments, fold)
        by_item = {prediction.item_id: prediction.probabilities for prediction in predictions}
        tables.append(tabulate_predictions(fold, name, fold.classes, by_item))
    write_methods(methods, rundir.table("methods"))
    table = pd.concat(tables, ignore_index=True)
    table.to_csv(rundir.table("predictions"), index=False)
    metrics = fold_metrics(table.rename(columns={"split": "fold"})).rename(columns={"fold": "split"})
    rundir.add_table("metrics", metrics, f"Metrics on validation and test {words_of(cfg.dataset).items}.", 30)
    _write_page(cfg, rundir, fold, table, methods)
    rows: list[dict[str, Any]] = metrics.to_dict("records")  # pyright: ignore[reportAssignmentType]
    return {f"{row['split']}/{row['method']}_{name}": row[name] for row in rows for name in METRICS}


class _Inputs:
    """What the classifiers look at, opened when a method needs it, and checked for leakage."""

    def __init__(self, cfg: Any, rundir: RunDir, fold: FoldData) -> None:
        self._cfg = cfg
        self._rundir = rundir
        self._fold = fold
        self._held_out = fold.fitted("val+test")

    def read(self, name: str) -> tuple[BagReader, list[int] | None]:
        """Returns the reader of an input's bags as they are stored, and the neurons that it holds, None: all."""
        if name == "activations":
            return activation_bags(self._fold.store), None
        neuron_ids = None if name == "latents" else self.best_neurons(self._cfg.mil.n_top_neurons)
        return latent_bags(self.latents(), neuron_ids), neuron_ids

    def fit_scale_(self, classifier: BagClassifier, read: BagReader) -> None:
        """Sets what a classifier's bags are shifted and scaled by, from the train slides."""
        standardizer, is_activations = self._fold.standardizer, classifier.input_name == "activations"
        if is_activations and standardizer is not None:
            classifier.input_mean.copy_(torch.from_numpy(standardizer.mean))
            classifier.input_scale.copy_(torch.from_numpy(standardizer.scale))
        if self._cfg.mil.scale_inputs:
            scale = activation_scale if is_activations else latent_scale
            factor = scale(lambda item_id: classifier.prepare(read(item_id)), self._fold.split.train)
            classifier.input_factor.copy_(factor)

    def latents(self) -> LatentStore:
        """Returns the fold's latents."""
        return LatentStore(self._rundir.trusted_upstream("encode", self._held_out).latents_dir())

    def best_neurons(self, n: int) -> list[int]:
        """Returns the best neurons of the fold's ranking."""
        ranked = self._rundir.trusted_upstream("select_neurons", self._held_out)
        return best_neuron_ids(pd.read_csv(ranked.table("neurons")), n)


def _train_and_predict(
    cfg: Any, rundir: RunDir, parsed: Method, inputs: _Inputs, fold: FoldData
) -> tuple[list[BagPrediction], BagClassifier, dict[str, Any]]:
    """Trains one model on the train slides and predicts the val and test slides.

    Returns:
        The predictions, the classifier, and what its model is made of.
    """
    method = parsed.name
    lightning.seed_everything(cfg.seed, workers=True, verbose=False)  # a method's result does not depend on the others
    labels = {item_id: fold.label_index(item_id) for item_id in fold.split.item_ids("train+val+test")}
    mil = cfg.mil
    read, neuron_ids = inputs.read(parsed.eats)
    arguments = {"d_in": read(fold.split.train[0]).shape[1], "n_classes": len(fold.classes)}
    model = config.instantiate(mil.pools[parsed.pool], **arguments)
    classifier = BagClassifier(model, fold.classes, parsed.eats, neuron_ids)
    inputs.fit_scale_(classifier, read)
    data = BagDataModule(
        lambda item_id: classifier.prepare(read(item_id)), fold.split, labels, cfg.seed, mil.batch_size
    )
    module = MILModule(model, mil.lr, mil.weight_decay, method)
    # Without validation slides there is nothing to choose by: the last weights are kept.
    monitor = module.monitored if fold.split.val else None
    best = ModelCheckpoint(
        rundir.checkpoints_dir / method, "best", monitor, save_weights_only=True, enable_version_counter=False
    )
    stop = EarlyStopping(module.monitored, patience=mil.patience, stopping_threshold=mil.stop_below)
    epochs = {"max_epochs": mil.max_epochs, "min_epochs": min(mil.min_epochs, mil.max_epochs)}
    batches = {"limit_val_batches": 1.0 if fold.split.val else 0, "num_sanity_val_steps": 0, "log_every_n_steps": 1}
    trainer = make_trainer(cfg, rundir, [best, stop] if fold.split.val else [best], part=method, **epochs, **batches)
    with _threads_for(np.median([data.read(item_id).numel() for item_id in fold.split.train])):
        trainer.fit(module, data)
    if trainer.interrupted:
        raise KeyboardInterrupt("Training was interrupted; start again to train the classifiers.")
    if not fold.split.val:
        _LOGGER.warning("Fold %d has no validation slides: %s keeps its last weights.", cfg.fold, method)
    module.load_state_dict(torch.load(best.best_model_path, map_location="cpu", weights_only=True)["state_dict"])
    loaders = [loader for loader in (data.val_dataloader(), data.test_dataloader()) if loader]
    predicted: Any = [batch for loader in loaders for batch in trainer.predict(module, loader) or ()]
    loss = float("nan") if best.best_model_score is None else float(best.best_model_score)
    _LOGGER.info("%s: %d epochs, best validation loss %.4g.", method, trainer.current_epoch, loss)
    predictions: list[BagPrediction] = [prediction for batch in predicted for prediction in batch]
    if spoilt := [one.item_id for one in predictions if not bool(one.probabilities.isfinite().all())]:
        raise ValueError(
            f"Expected finite probabilities of {method}, got others for {', '.join(spoilt[:5])} ({len(spoilt)} "
            f"in all): their features are far larger than those of the train items. Look at them."
        )
    chosen = {key: value for key, value in config.to_container(mil.pools[parsed.pool]).items() if key != "_target_"}
    return predictions, classifier.cpu(), chosen | arguments


@contextmanager
def _threads_for(n_values: float) -> Iterator[None]:
    """Trains on bags of `n_values` values with one CPU thread when they are small."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(n_threads if n_values >= _VALUES_FOR_THREADS else 1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)


def _predict_by_neuron(inputs: _Inputs, fold: FoldData) -> tuple[list[BagPrediction], BagClassifier, dict[str, Any]]:
    """Predicts from the best neuron, of more than two classes from each class's best; returns as the models do."""
    neuron_ids = inputs.best_neurons(1 if len(fold.classes) == 2 else len(fold.classes))
    latents, train = inputs.latents(), fold.split.train
    read = latent_bags(latents, neuron_ids)
    pieces = ((codes, rows.columns(neuron_ids).numpy()) for codes, rows in latents.read(train))
    maxima = pool_items(pieces, train).maxima
    scaler, regression = dict(fit_single_neuron(maxima, [fold.label_index(one) for one in train]).steps).values()
    arguments = {"d_in": len(neuron_ids), "n_classes": len(fold.classes)}
    model = MaximaRegression(**arguments)
    fitted = {"mean": scaler.mean_, "scale": scaler.scale_, "weight": regression.coef_, "bias": regression.intercept_}
    model.load_state_dict({name: torch.from_numpy(np.asarray(value, np.float64)) for name, value in fitted.items()})
    classifier = BagClassifier(model, fold.classes, NEURON, neuron_ids)
    predictions = [
        BagPrediction(item_id, classifier(read(item_id))[0], None) for item_id in fold.split.item_ids("val+test")
    ]
    return predictions, classifier, arguments


def _export(
    cfg: Any, rundir: RunDir, method: str, classifier: BagClassifier, model_arguments: dict[str, Any], fold: FoldData
) -> None:
    """Keeps a classifier, for `load_module(export_dir, BagClassifier)`."""
    arguments = {
        "model": describe(classifier.model, model_arguments),
        "classes": list(classifier.classes),
        "input_name": classifier.input_name,
        "neuron_ids": classifier.neuron_ids and list(classifier.neuron_ids),
    }
    metadata = {"name": cfg.name, "fold": cfg.fold, "seed": cfg.seed, "dataset": cfg.dataset.name, "method": method}
    folder = rundir.export_dir / method
    save_module(classifier, folder, arguments, metadata, fold.fitted("train+val"), fold.spec)


def _write_attention(rundir: RunDir, method: str, predictions: list[BagPrediction]) -> None:
    for prediction in predictions:
        if prediction.attention is not None:
            with write_atomically(rundir.path / "attention" / method / f"{prediction.item_id}.npy") as temporary:
                np.save(temporary, prediction.attention.numpy())


def _write_page(cfg: Any, rundir: RunDir, fold: FoldData, table: pd.DataFrame, methods: Mapping[str, Method]) -> None:
    words = words_of(cfg.dataset)
    test_labels = {fold.items[item_id].label for item_id in fold.split.test}
    for name in fold.classes if len(fold.classes) > 2 else fold.classes[-1:]:
        if name not in test_labels or len(test_labels) < 2:
            _LOGGER.warning("No ROC curve of %s: the test slides of fold %d are of %s.", name, cfg.fold, test_labels)
            continue
        caption = f"ROC on {len(fold.split.test)} test {words.items}, {name} positive."
        rundir.add_figure("roc" if len(fold.classes) == 2 else f"roc_{name}", plot_roc(table, name, methods), caption)
    text = (
        f"Trained on {len(fold.split.train)} {words.items}; the weights with the lowest loss on {len(fold.split.val)} "
        f"validation {words.items} predict {len(fold.split.test)} test {words.items}. Top neurons: the "
        f"{cfg.mil.n_top_neurons} best of the ranking made on train {words.items}; neuron: the best one alone, "
        f"logistic regression on its maximum over the {words.item}."
    )
    rundir.write_page(Page(f"{words.item.capitalize()} classifiers", [text]))
