"""Trains probes on activations and latents of items, exports them as heads, and tries every neuron alone."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import lightning
import numpy as np
import pandas as pd
import torch

from src.analysis.confusion_figure import plot_confusion
from src.analysis.neuron_probes import fit_neuron_probes, score_neuron_probes, tabulate_neuron_probes
from src.analysis.probe_metrics import NAMES, count_confusions, score_classes, score_overall
from src.analysis.probe_targets import ProbeTargets, targets_of_classes, targets_of_columns
from src.analysis.selection import best_neuron_ids
from src.data.feeding.item_vectors import ItemVectors, activation_pieces, latent_pieces, pool_vectors
from src.data.fold import FoldData, keep_slides, open_fold
from src.models.probes import Probe
from src.records import PARTS
from src.report.page import Page
from src.runs.rundir import RunDir
from src.stores.latents.source import LatentSource
from src.stores.modules import save_module
from src.tasks.upstream_latents import open_upstream_latents, require_items
from src.training.probe_fit import fit_probe

_LOGGER = logging.getLogger(__name__)
_ALL_PARTS = "+".join(PARTS)
_CHUNK_VALUES = 1 << 22


def missing_inputs(cfg: Any) -> list[str]:
    """Returns why a pipeline trains no probes: slides are classified by task=train_mil."""
    if cfg.dataset.images_dir is None:
        return ["dataset.images_dir names no images, and slides have task=train_mil; task=train_probe runs anyway"]
    return []


def run(cfg: Any, rundir: RunDir) -> dict[str, float]:
    """Writes `analysis/predictions.csv`, `metrics.csv`, `classes.csv`, the confusion matrices and `neuron_probes.csv`.

    `export/<input>/` keeps each probe, for `load_module(folder, Probe)`. Probes are fitted on train items; validation
    items choose penalty and epoch; test items choose nothing.

    Returns:
        `<split>/<input>_<metric>` for val and test, NaN where the items do not define it.

    Raises:
        FileNotFoundError: when a probe needs latents or a ranking that were not made.
        ValueError: when labels are missing, a class has no train item, a neuron does not exist, or the SAE or the
            ranking was fitted on held-out cases.
    """
    fold, targets = _open(cfg)
    targets.require_all(fold.split.train, "train")
    labels = "columns" if targets.is_multilabel else "labels"
    of_csv = (f"split {_ALL_PARTS}", f"cases {_ALL_PARTS}", f"{labels} {_ALL_PARTS}", "classes")
    rundir.record(*fold.inputs(*of_csv, f"activations {_ALL_PARTS}"))
    rundir.write_fitted_on(fold.fitted("train+val"))  # val items choose penalty and epoch
    inputs = _Inputs(cfg, rundir, fold)
    metrics, classes, predictions = [], [], []
    for name in cfg.probe.inputs:
        probabilities = _fit_and_predict(cfg, rundir, name, inputs, targets)
        predictions.append(_tabulate(fold, name, targets, probabilities))
        for part in ("val", "test"):
            if item_ids := list(fold.split.item_ids(part)):
                of_part = np.stack([probabilities[one] for one in item_ids])
                overall, by_class = _score(rundir, name, part, of_part, item_ids, targets)
                metrics.append(overall)
                classes.append(by_class)
    pd.concat(predictions, ignore_index=True).to_csv(rundir.table("predictions"), index=False)
    rundir.add_table("metrics", pd.DataFrame(metrics), "Probes on validation and test items.", 30)
    if classes:
        rundir.add_table("classes", pd.concat(classes, ignore_index=True), "Class by class.", 40)
    if cfg.probe.neuron_probes:
        _try_neurons(cfg, rundir, inputs, targets)
    results = {f"{row['split']}/{row['input']}_{name}": row[name] for row in metrics for name in NAMES}
    _write_page(cfg, rundir, fold, targets, results)
    return results


def _open(cfg: Any) -> tuple[FoldData, ProbeTargets]:
    """Returns the fold without the items of which no label is known, and what is known of the others."""
    fold, columns = open_fold(cfg), list(cfg.probe.columns)
    if not columns:
        fold = fold.of_labelled()
        return fold, targets_of_classes(fold.items, fold.classes)
    targets = targets_of_columns(fold.items, columns, cfg.probe.positive)
    split = keep_slides(fold.split, targets.values.keys())
    _LOGGER.info("%d items of fold %s have labels in %s.", len(split.item_ids(_ALL_PARTS)), cfg.fold, columns)
    return replace(fold, split=split), targets


class _Inputs:
    """What probes see of the fold's items, read once, and checked for leakage."""

    def __init__(self, cfg: Any, rundir: RunDir, fold: FoldData) -> None:
        self._cfg, self._rundir, self.fold = cfg, rundir, fold
        self.item_ids = fold.split.item_ids(_ALL_PARTS)

    @cached_property
    def latents(self) -> LatentSource:
        """The fold's latents."""
        source = open_upstream_latents(self._cfg, self._rundir, self.fold, "val+test", self._cfg.probe.latents)
        require_items(source, self.item_ids, _ALL_PARTS)
        return source

    @cached_property
    def of_latents(self) -> ItemVectors:
        """The vectors of all neurons."""
        return self._pool_latents(None)

    def read(self, name: str) -> tuple[ItemVectors, list[int] | None]:
        """Returns the vectors of all items, and the neurons that they hold, None: all."""
        if name == "activations":
            ranges = np.array(self.fold.store.row_ranges(self.item_ids))
            pieces = activation_pieces(self.fold.store, self.item_ids)
            lengths = np.diff(ranges).ravel().tolist()
            pool, folder = self._cfg.probe.pool, self._rundir.path
            return pool_vectors(pieces, lengths, self.fold.d_in, pool, folder), None
        if name == "latents":
            return self.of_latents, None
        neuron_ids = self._neurons()
        return self._pool_latents(neuron_ids), neuron_ids

    def positions(self, part: str) -> range:
        """Returns the places of a part's items among all, which are in the order of the parts."""
        n_before = sum(len(self.fold.split.item_ids(one)) for one in PARTS[: PARTS.index(part)])
        return range(n_before, n_before + len(self.fold.split.item_ids(part)))

    def _pool_latents(self, neuron_ids: list[int] | None) -> ItemVectors:
        pieces = latent_pieces(self.latents, self.item_ids, neuron_ids)
        lengths = [self.latents.items[one].n_rows for one in self.item_ids]
        width = self.latents.n_latents if neuron_ids is None else len(neuron_ids)
        return pool_vectors(pieces, lengths, width, self._cfg.probe.pool, self._rundir.path)

    def _neurons(self) -> list[int]:
        probe, n_latents = self._cfg.probe, self.latents.n_latents
        if probe.neurons is None:
            ranked = self._rundir.trusted_upstream("select_neurons", self.fold.fitted("val+test"))
            return best_neuron_ids(pd.read_csv(ranked.table("neurons")), probe.n_neurons)
        if wrong := [one for one in probe.neurons if not 0 <= one < n_latents]:
            raise ValueError(f"Expected probe.neurons within 0:{n_latents}, the neurons of the SAE, got {wrong}.")
        return list(probe.neurons)


def _fit_and_predict(
    cfg: Any, rundir: RunDir, name: str, inputs: _Inputs, targets: ProbeTargets
) -> dict[str, np.ndarray]:
    """Fits and exports one probe; returns the probabilities [n_classes] of the val and test items by id."""
    lightning.seed_everything(cfg.seed, workers=True, verbose=False)  # a probe does not depend on the others
    vectors, neuron_ids = inputs.read(name)
    probe = Probe(
        vectors.values.shape[1],
        targets.classes,
        name,
        neuron_ids,
        cfg.probe.pool,
        targets.is_multilabel,
        cfg.probe.d_hidden,
    )
    known = torch.from_numpy(targets.of(inputs.item_ids))
    fit = fit_probe(cfg, rundir, probe, vectors, known, inputs.positions("train"), inputs.positions("val"), name)
    metadata = {"name": cfg.name, "fold": cfg.fold, "seed": cfg.seed, "dataset": cfg.dataset.name}
    if name != "activations":
        metadata["sae"] = (rundir.upstream("train_sae").read_manifest() or {}).get("digest")
    fitted_with = {"solver": fit.solver, "l2": fit.l2, "val_loss": None if np.isnan(fit.val_loss) else fit.val_loss}
    fold = inputs.fold
    save_module(
        probe, rundir.export_dir / name, probe.arguments, metadata | fitted_with, fold.fitted("train+val"), fold.spec
    )
    asked = range(inputs.positions("val").start, len(inputs.item_ids))
    return {
        inputs.item_ids[place]: values for place, values in zip(asked, _predict(probe, vectors, asked), strict=True)
    }


@torch.no_grad()
def _predict(probe: Probe, vectors: ItemVectors, asked: range) -> np.ndarray:
    """Returns the probabilities of consecutive items [n, n_classes]: those of the mean of their vectors' logits."""
    part = vectors.of(asked)
    items = torch.from_numpy(vectors.items[part] - asked.start)
    sums, n_rows = torch.zeros(len(asked), len(probe.classes)), max(1, _CHUNK_VALUES // probe.d_in)
    for start in range(0, len(items), n_rows):
        piece = slice(part.start + start, min(part.start + start + n_rows, part.stop))
        logits = probe(torch.from_numpy(np.array(vectors.values[piece])))
        sums.index_add_(0, items[start : start + n_rows], logits)
    n_vectors = torch.bincount(items, minlength=len(asked))
    probabilities = probe.probabilities(sums / n_vectors[:, None]).numpy()
    if n_spoilt := int((~np.isfinite(probabilities).all(1)).sum()):
        raise ValueError(
            f"Expected finite probabilities, got others for {n_spoilt} items: their values are far larger than those "
            "of the train items. Look at them."
        )
    return probabilities


def _tabulate(
    fold: FoldData, name: str, targets: ProbeTargets, probabilities: Mapping[str, np.ndarray]
) -> pd.DataFrame:
    """Returns a row an item: what is known of it and what the probe predicts."""
    rows = []
    for part in ("val", "test"):
        for item_id in fold.split.item_ids(part):
            item = fold.items[item_id]
            labels = {f"label_{column}": item.labels[column] for column in targets.classes if targets.is_multilabel}
            labels = labels or {"label": item.label}
            probs = {f"prob_{c}": float(p) for c, p in zip(targets.classes, probabilities[item_id], strict=True)}
            rows.append({"method": name, "split": part, "item_id": item_id, "case_id": item.case_id, **labels, **probs})
    return pd.DataFrame(rows)


def _score(
    rundir: RunDir, name: str, part: str, probabilities: np.ndarray, item_ids: list[str], targets: ProbeTargets
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Writes and draws a part's confusion matrix; returns its metrics, overall and a row a class."""
    arrays = probabilities, targets.of(item_ids), targets.classes, targets.is_multilabel
    counts = count_confusions(*arrays)
    counts.to_csv(rundir.table(f"confusion_{name}_{part}"), index_label="class")
    if part == "test":
        figure = plot_confusion(counts, f"Probe on {name}, {len(item_ids)} test items")
        rundir.add_figure(f"confusion_{name}", figure, f"What the probe on {name} predicts for test items.")
    overall = {"input": name, "split": part, "n_items": len(item_ids)}
    if not targets.is_multilabel:
        overall["n_right"] = int(np.trace(counts.to_numpy()))
    by_class = score_classes(*arrays)
    by_class.insert(0, "input", name)
    by_class.insert(1, "split", part)
    return overall | score_overall(*arrays), by_class


def _try_neurons(cfg: Any, rundir: RunDir, inputs: _Inputs, targets: ProbeTargets) -> None:
    """Fits rules of every neuron alone on train items, and scores them on every part."""
    vectors = inputs.of_latents

    def arrays(part: str) -> tuple[np.ndarray, np.ndarray]:
        places = vectors.of(inputs.positions(part))
        members = targets.members([inputs.item_ids[item] for item in vectors.items[places]])
        return vectors.values[places], members

    metric = cfg.probe.threshold_metric
    probes = fit_neuron_probes(*arrays("train"), metric)
    scores = {part: score_neuron_probes(probes, *arrays(part)) for part in PARTS if inputs.positions(part)}
    table = tabulate_neuron_probes(probes, targets.classes, scores)
    table.to_csv(rundir.table("neuron_probes"), index=False)
    # By train items: validation items are few, and among thousands of neurons many are right on all of them by chance.
    best = table.sort_values(f"train_{metric}", ascending=False, kind="stable").groupby("class", sort=False).head(1)
    best = best.set_index("class").reindex(list(targets.classes)).reset_index()
    caption = f"The best neuron for each class against the rest, by {metric.replace('_', ' ')} on train items."
    rundir.add_table("best_neurons", best, caption, 40)


def _write_page(cfg: Any, rundir: RunDir, fold: FoldData, targets: ProbeTargets, results: Mapping[str, float]) -> None:
    counts = ", ".join(f"{len(fold.split.item_ids(part))} {part}" for part in PARTS)
    what = "labels that may be there together" if targets.is_multilabel else "classes"
    text = (
        f"Probes of {len(targets.classes)} {what} on {counts} items; an item's rows are pooled by "
        f"probe.pool={cfg.probe.pool}. Fitted on train items; validation items chose penalty and epoch."
    )
    paragraphs = [text]
    accuracy = {name: results.get(f"test/{name}_accuracy", np.nan) for name in cfg.probe.inputs}
    if {"activations", "latents"} <= accuracy.keys() and not np.isnan(accuracy["latents"]):
        paragraphs.append(
            f"On latents test accuracy is {accuracy['latents']:.3f}, on activations {accuracy['activations']:.3f}: "
            f"{accuracy['activations'] - accuracy['latents']:+.3f} is what the SAE costs."
        )
    if cfg.probe.neuron_probes:
        paragraphs.append("Every neuron alone against each class: analysis/neuron_probes.csv.")
    rundir.write_page(Page("Probes", paragraphs, {f"Test accuracy, {name}": value for name, value in accuracy.items()}))
