"""Trains slide classifiers on activations, on latents and on neurons, and predicts val and test slides."""

import logging
from collections.abc import Mapping
from typing import Any

import lightning
import numpy as np
import pandas as pd
import torch

from src import config
from src.analysis.cross_validation import fold_metrics
from src.analysis.figures import plot_roc
from src.analysis.methods import NEURON, Method, parse_methods, write_methods
from src.analysis.pooling import pool_items
from src.analysis.selection import best_neuron_ids
from src.analysis.single_neuron import fit_single_neuron
from src.analysis.slide_metrics import METRICS
from src.data.feeding.bags import (
    BagDataModule,
    BagReader,
    activation_bags,
    activation_scale,
    latent_bags,
    latent_scale,
    sparse_latent_bags,
)
from src.data.fold import FoldData, open_fold, tabulate_predictions
from src.files import write_atomically
from src.interrupts import keeping
from src.models.mil.classifier import BagClassifier, MaximaRegression
from src.modules.mil import BagPrediction, MILModule
from src.ops.probe_losses import class_weights
from src.ops.sparse_latents import SparseLatents
from src.report.page import Page
from src.runs.rundir import RunDir
from src.stores.latents.store import LatentStore
from src.stores.modules import describe, save_module
from src.stores.patch_scores import PatchScores, write_patch_scores
from src.training.mil_fit import fit_mil, predict_bags
from src.wording import words_of

_LOGGER = logging.getLogger(__name__)


def run(cfg: Any, rundir: RunDir) -> dict[str, float]:
    """Writes `analysis/predictions.csv` of every method, what it says of each patch, and the ROC curves.

    `analysis/methods.csv` says what the methods are, `export/<method>/` keeps each as a `BagClassifier`, and
    `analysis/patch_scores/<method>.h5` the attention and logits of the patches of val and test slides.

    Test slides are predicted once, by the weights that validation slides chose; they choose nothing. A run that was
    stopped goes on at the method it was in.

    Returns:
        `<split>/<method>_<metric>` for val and test, NaN where the slides do not define it.

    Raises:
        ValueError: when a method is unknown, the SAE or the ranking was fitted on held-out cases, the train slides are
            of one class, or AUROC is to choose weights and validation slides are of one class.
        FileNotFoundError: when a method needs latents or a ranking that were not made.
    """
    methods = parse_methods(cfg.mil.methods, cfg.mil.pools)
    fold = open_fold(cfg).of_labelled()
    _require_classes(cfg, fold)
    of_csv = ("split train+val+test", "cases train+val+test", "labels train+val+test", "classes")
    rundir.record(*fold.inputs(*of_csv, "activations train+val+test"))
    rundir.write_fitted_on(fold.fitted("train+val"))  # val slides choose the weights
    inputs = _Inputs(cfg, rundir, fold)
    write_methods(methods, rundir.table("methods"))
    tables: list[pd.DataFrame] = []
    with keeping(lambda: f"{len(tables)} of {len(methods)} methods" if tables else ""):
        for method in methods.values():
            tables.append(_predictions_of(cfg, rundir, method, inputs, fold))
    table = pd.concat(tables, ignore_index=True)
    table.to_csv(rundir.table("predictions"), index=False)
    metrics = fold_metrics(table.rename(columns={"split": "fold"})).rename(columns={"fold": "split"})
    rundir.add_table("metrics", metrics, f"Metrics on validation and test {words_of(cfg.dataset).items}.", 30)
    _write_page(cfg, rundir, fold, table, methods)
    rows: list[dict[str, Any]] = metrics.to_dict("records")  # pyright: ignore[reportAssignmentType]
    return {f"{row['split']}/{row['method']}_{name}": row[name] for row in rows for name in METRICS}


def _require_classes(cfg: Any, fold: FoldData) -> None:
    """Refuses parts of one class, from which nothing can be learned or chosen."""
    parts = ["train"] if cfg.mil.monitor == "loss" or not fold.split.val else ["train", "val"]
    for part in parts:
        found = {fold.items[item_id].label for item_id in fold.split.item_ids(part)}
        if len(found) < 2:
            remedy = "Give another fold or other splits" + (", or mil.monitor=loss" if part == "val" else "")
            raise ValueError(f"Expected {part} items of two classes or more in fold {cfg.fold}, got {found}. {remedy}.")


def _predictions_of(cfg: Any, rundir: RunDir, method: Method, inputs: "_Inputs", fold: FoldData) -> pd.DataFrame:
    """Trains a method and writes what it leaves; one that an earlier start finished is read back."""
    finished = rundir.checkpoints_dir / method.name / "predictions.csv"
    if finished.is_file():
        _LOGGER.info("%s was trained by an earlier start.", method.name)
        ids: Any = dict.fromkeys(("method", "split", "item_id", "case_id", "label"), str)
        return pd.read_csv(finished, dtype=ids, keep_default_na=False)
    fit = _predict_by_neuron if method.name == NEURON else _train_and_predict
    predictions, classifier, arguments = fit(cfg, rundir, method, inputs, fold)
    if method.name != NEURON:
        _write_patch_scores(rundir, method.name, predictions, fold)
    _export(cfg, rundir, method.name, classifier, arguments, fold)
    by_item = {prediction.item_id: prediction.probabilities for prediction in predictions}
    table = tabulate_predictions(fold, method.name, fold.classes, by_item)
    with write_atomically(finished) as temporary:  # last: it says that the rest is there
        table.to_csv(temporary, index=False)
    (finished.parent / "last.ckpt").unlink(missing_ok=True)
    return table


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
        if name == "latents":
            return sparse_latent_bags(self.latents()), None
        named = name == "neurons"
        neuron_ids = list(self._cfg.mil.neurons) if named else self.best_neurons(self._cfg.mil.n_top_neurons)
        return latent_bags(self.latents(), neuron_ids), neuron_ids

    def fit_scale_(self, classifier: BagClassifier, read: BagReader) -> None:
        """Sets what a classifier's bags are shifted and scaled by, from the train slides."""
        standardizer, is_activations = self._fold.standardizer, classifier.input_name == "activations"
        if is_activations and standardizer is not None:
            classifier.input_mean.copy_(torch.from_numpy(standardizer.mean))
            classifier.input_scale.copy_(torch.from_numpy(standardizer.scale))
        if self._cfg.mil.scale_inputs:
            scale = activation_scale if is_activations else latent_scale
            factor = scale(_prepared(classifier, read), self._fold.split.train)
            classifier.input_factor.copy_(factor)

    def latents(self) -> LatentStore:
        """Returns the fold's latents."""
        return LatentStore(self._rundir.trusted_upstream("encode", self._held_out).latents_dir())

    def best_neurons(self, n: int) -> list[int]:
        """Returns the best neurons of the fold's ranking."""
        ranked = self._rundir.trusted_upstream("select_neurons", self._held_out)
        return best_neuron_ids(pd.read_csv(ranked.table("neurons")), n)


def _prepared(classifier: BagClassifier, read: BagReader) -> BagReader:
    """Returns a reader of bags on the scale that a classifier's model eats."""

    def read_prepared(item_id: str) -> torch.Tensor | SparseLatents:
        bag = read(item_id)
        return classifier.prepare_latents(bag) if isinstance(bag, SparseLatents) else classifier.prepare(bag)

    return read_prepared


def _train_and_predict(
    cfg: Any, rundir: RunDir, method: Method, inputs: _Inputs, fold: FoldData
) -> tuple[list[BagPrediction], BagClassifier, dict[str, Any]]:
    """Trains one model on the train slides and predicts the val and test slides.

    Returns:
        The predictions, the classifier, and what its model is made of.
    """
    lightning.seed_everything(cfg.seed, workers=True, verbose=False)  # a method's result does not depend on the others
    labels = {item_id: fold.label_index(item_id) for item_id in fold.split.item_ids("train+val+test")}
    mil, train = cfg.mil, fold.split.train
    read, neuron_ids = inputs.read(method.eats)
    arguments = {"d_in": read(train[0]).shape[1], "n_classes": len(fold.classes)}
    model = config.instantiate(mil.pools[method.pool], **arguments)
    classifier = BagClassifier(model, fold.classes, method.eats, neuron_ids)
    inputs.fit_scale_(classifier, read)
    data = BagDataModule(_prepared(classifier, read), fold.split, labels, cfg.seed, mil.batch_size)
    targets = torch.tensor([labels[item_id] for item_id in train])
    module = MILModule(
        model,
        mil.lr,
        mil.weight_decay,
        method.name,
        tuple(mil.betas),
        mil.cosine_to,
        class_weights(targets, len(fold.classes), mil.class_weights == "balanced"),
        mil.monitor,
    )
    trainer = fit_mil(cfg, rundir, module, data, len(fold.split.val))
    predictions = predict_bags(trainer, module, data)
    chosen = {key: value for key, value in config.to_container(mil.pools[method.pool]).items() if key != "_target_"}
    return predictions, classifier.cpu(), chosen | arguments


def _predict_by_neuron(
    cfg: Any,  # noqa: ARG001 - as of the methods that train
    rundir: RunDir,  # noqa: ARG001
    method: Method,  # noqa: ARG001
    inputs: _Inputs,
    fold: FoldData,
) -> tuple[list[BagPrediction], BagClassifier, dict[str, Any]]:
    """Predicts from the best neuron, of more than two classes from each class's best; returns as the models do."""
    neuron_ids = inputs.best_neurons(1 if len(fold.classes) == 2 else len(fold.classes))
    latents, train = inputs.latents(), fold.split.train
    read = latent_bags(latents, neuron_ids)
    pieces = ((codes, rows.columns(neuron_ids).numpy()) for codes, rows in latents.read(train))
    maxima = pool_items(pieces, train).values
    scaler, regression = dict(fit_single_neuron(maxima, [fold.label_index(one) for one in train]).steps).values()
    arguments = {"d_in": len(neuron_ids), "n_classes": len(fold.classes)}
    model = MaximaRegression(**arguments)
    fitted = {"mean": scaler.mean_, "scale": scaler.scale_, "weight": regression.coef_, "bias": regression.intercept_}
    model.load_state_dict({name: torch.from_numpy(np.asarray(value, np.float64)) for name, value in fitted.items()})
    classifier = BagClassifier(model, fold.classes, NEURON, neuron_ids)
    predictions = [
        BagPrediction(item_id, classifier(read(item_id))[0], None, None) for item_id in fold.split.item_ids("val+test")
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


def _write_patch_scores(rundir: RunDir, method: str, predictions: list[BagPrediction], fold: FoldData) -> None:
    def array(values: torch.Tensor | None) -> np.ndarray | None:
        return None if values is None else values.float().numpy()

    scores = {
        one.item_id: PatchScores(fold.classes, array(one.attention), array(one.instance_logits)) for one in predictions
    }
    write_patch_scores(rundir.path / "analysis" / "patch_scores" / f"{method}.h5", scores, fold.classes)


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
