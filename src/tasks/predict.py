"""Applies classifiers and a ranking of neurons that were fitted on another study to the test items of a fold."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score

from src import config
from src.activation_spec import require_same_spec
from src.analysis.calibration import calibrate, plot_reliability
from src.analysis.cross_validation import summarize
from src.analysis.delong import delong
from src.analysis.figures import plot_roc
from src.analysis.firing_shift import compare_firing, describe_shift, firing_rates, plot_firing_shift
from src.analysis.methods import read_methods, write_methods
from src.analysis.pooling import pool_items
from src.analysis.selection import best_neuron_ids
from src.data.feeding.bags import activation_bags, latent_bags
from src.data.fold import FoldData, open_fold, tabulate_predictions
from src.inputs import RUN, file_input
from src.models.mil.classifier import BagClassifier
from src.progress import track
from src.report.page import Page
from src.runs.rundir import RunDir
from src.stores.latents.store import LatentStore
from src.stores.modules import load_module, spec_of
from src.tasks.upstream_sae import require_same_sae

_LOGGER = logging.getLogger(__name__)
_RUNS = ("select_neurons", "train_mil")


def missing_inputs(cfg: Any) -> list[str]:
    """Returns why there is nothing to apply: a fold's own classifiers predict its items when they are trained."""
    if config.tasks().given(cfg).keys() & set(_RUNS):
        return []
    return ["train_mil predicts the items of its own fold; give mil_run=<run> or ranking_run=<run> of another study"]


def run(cfg: Any, rundir: RunDir) -> dict[str, float]:
    """Writes `analysis/predictions.csv` of every classifier and `analysis/neuron.csv`, the best neuron's maxima.

    Where items have labels, `metrics.csv` has every metric with its bootstrap interval over cases, `calibration.csv`
    what `calibrate` measures, and there are ROC and reliability figures. Where the study's latents are still there,
    `firing_shift.csv` compares how often each neuron fires here and on the items that the study was fitted on.

    Returns:
        `n_items`, `n_labelled`; where test items of two classes have labels `test/<method>_<metric>`, also of `brier`
        and `calibration_error`, and `test/neuron_maximum_auroc` with `_low` and `_high` (DeLong, cases as clusters);
        `shift/<name>` as `describe_shift` has them.

    Raises:
        ValueError: when no run is given, what it holds was fitted on cases of these items, with another SAE, on other
            activations, or for other classes.
    """
    if reasons := missing_inputs(cfg):
        raise ValueError(f"Expected runs of another study to apply, got none: {reasons[0]}.")
    fold = open_fold(cfg)
    rundir.record(*fold.inputs("split test", "cases test", "labels test", "activations test", "classes"))
    given = config.tasks().given(cfg)
    latents = LatentStore(rundir.upstream("encode").latents_dir())
    results: dict[str, float] = {}
    if "train_mil" in given:
        predictions = _classify(rundir, fold, latents)
        rundir.add_table("predictions", predictions, "Probabilities of every classifier.", 5)
        results = _score(cfg, rundir, fold, predictions)
    if "select_neurons" in given:
        results |= _score_by_neuron(cfg, rundir, fold, latents)
    remarks, shift = _compare_with_study(cfg, rundir, fold, latents)
    results |= shift
    labelled = [item_id for item_id in fold.split.test if fold.items[item_id].label is not None]
    results |= {"n_items": len(fold.split.test), "n_labelled": len(labelled)}
    text = (
        f"{results['n_items']:g} items, {results['n_labelled']:g} of them with a label, to which was applied what "
        f"another study fitted: {', '.join(f'{task} {path}' for task, path in given.items())}. Nothing was fitted here."
    )
    numbers = {key: value for key, value in results.items() if key.startswith(("test/", "shift/"))}
    rundir.write_page(Page("Applied to this cohort", [text, *remarks], numbers))
    return results


def _classify(rundir: RunDir, fold: FoldData, latents: LatentStore) -> pd.DataFrame:
    fitted = rundir.trusted_upstream("train_mil", fold.fitted("test"))
    methods = read_methods(fitted.table("methods"))
    write_methods(methods, rundir.table("methods"))
    tables = [_predict(fitted, name, fold, latents, rundir) for name in track(methods, "Applying classifiers")]
    return pd.concat(tables, ignore_index=True)


def _score(cfg: Any, rundir: RunDir, fold: FoldData, predictions: pd.DataFrame) -> dict[str, float]:
    """Scores predictions where items of two classes have labels; returns nothing elsewhere."""
    labelled: Any = predictions[predictions["label"].notna()]
    if labelled["label"].nunique() < 2:
        return {}
    options, methods = cfg.summary, read_methods(rundir.table("methods"))
    summary = summarize(labelled.assign(fold=0), options.n_bootstrap, options.confidence, cfg.seed)
    columns = {"pooled": "value", "slide_low": "low", "slide_high": "high"}
    shown: Any = summary[["method", "metric", *columns, "n_items"]]
    metrics = shown.rename(columns=columns)
    caption = f"Every classifier, with {options.confidence:.0%} intervals of a percentile bootstrap of whole cases."
    rundir.add_table("metrics", metrics, caption, 60)
    calibration = calibrate(labelled)
    rundir.add_table("calibration", calibration, "Whether probabilities are the shares that come true.", 30)
    for name in fold.classes if len(fold.classes) > 2 else fold.classes[-1:]:
        if (labelled["label"] == name).any():
            figure = plot_roc(labelled, name, methods)
            rundir.add_figure("roc" if len(fold.classes) == 2 else f"roc_{name}", figure, f"ROC, {name} positive.")
    caption = "Share that came true over the probability, in ten bins; points are as large as their bins."
    rundir.add_figure("reliability", plot_reliability(labelled, methods), caption)
    rows: Any = metrics.to_dict("records")
    found = {f"test/{row['method']}_{row['metric']}": row["value"] for row in rows}
    calibrated: Any = calibration.to_dict("records")
    return found | {
        f"test/{row['method']}_{key}": row[key] for row in calibrated for key in ("brier", "calibration_error")
    }


@torch.no_grad()
def _predict(fitted: RunDir, method: str, fold: FoldData, latents: LatentStore, rundir: RunDir) -> pd.DataFrame:
    export_dir = fitted.export_dir / method
    classifier, metadata = load_module(export_dir, BagClassifier)
    remedy = "Give another mil_run=<run>, or the activations that it was fitted on."
    require_same_spec(spec_of(metadata), str(export_dir), fold.spec, str(fold.folder.path), remedy)
    if strange := sorted(set(fold.classes) - set(classifier.classes)):
        raise ValueError(
            f"Expected labels among the classes {list(classifier.classes)} of {export_dir}, got {strange}: give "
            "dataset.target=<column> of those classes, or dataset.target=null to predict without labels."
        )
    is_of_activations = classifier.input_name == "activations"
    if not is_of_activations:
        require_same_sae(rundir, fitted)
    read = activation_bags(fold.store) if is_of_activations else latent_bags(latents, classifier.neuron_ids)
    probabilities = {item_id: classifier(read(item_id))[0] for item_id in fold.split.test}
    return tabulate_predictions(fold, method, classifier.classes, probabilities)


def _score_by_neuron(cfg: Any, rundir: RunDir, fold: FoldData, latents: LatentStore) -> dict[str, float]:
    ranked = rundir.trusted_upstream("select_neurons", fold.fitted("test"))
    require_same_sae(rundir, ranked)
    ranking = pd.read_csv(ranked.table("neurons"))
    (neuron_id,) = best_neuron_ids(ranking, 1)
    item_ids = list(fold.split.test)

    column = ((codes, rows.columns([neuron_id]).numpy()) for codes, rows in latents.read(item_ids))
    maxima = pool_items(column, item_ids).values[:, 0]
    labels = [fold.items[item_id].label for item_id in item_ids]
    table = pd.DataFrame({"item_id": item_ids, "label": labels, f"neuron_{neuron_id}": maxima})
    rundir.add_table("neuron", table, "The best neuron's maximum over each item.", 5)
    results = {"neuron_id": float(neuron_id)}
    known = np.array([label is not None for label in labels])
    # With more than two classes the ranking says for which one the neuron was chosen.
    positive = str(ranking.iloc[0]["class"]) if "class" in ranking else fold.classes[-1] if fold.classes else None
    is_positive = np.array([label == positive for label in labels])[known]
    if is_positive.any() and not is_positive.all():
        results["test/neuron_maximum_auroc"] = float(roc_auc_score(is_positive, maxima[known]))
        cases = np.array([fold.items[item_id].case_id for item_id in item_ids])[known]
        if min(len(set(cases[is_positive])), len(set(cases[~is_positive]))) > 1:
            interval = delong(maxima[None, known], is_positive, pd.factorize(cases)[0]).interval
            low, high = interval(0, cfg.summary.confidence)
            results |= {"test/neuron_maximum_auroc_low": low, "test/neuron_maximum_auroc_high": high}
    return results


def _compare_with_study(
    cfg: Any, rundir: RunDir, fold: FoldData, latents: LatentStore
) -> tuple[list[str], dict[str, float]]:
    """Writes how far the neurons' firing rates moved; returns remarks for the page and numbers."""
    given = config.tasks().given(cfg)
    fitted = rundir.upstream("select_neurons" if "select_neurons" in given else "train_mil")
    encoded = [RunDir(Path(one.path)) for one in fitted.recorded() if one.what == RUN and one.name == "encode"]
    # A study that was moved as a whole has its latents beside the run.
    encoded.append(RunDir(fitted.path.parent / "encode"))
    study = next((run for run in encoded if run.is_finished and run.latents_dir().is_dir()), None)
    if study is None:
        remark = f"How far firing rates moved is not known: the latents that {fitted.path} was made from are not there."
        _LOGGER.warning("%s", remark)
        return [remark], {}
    rundir.record(file_input("file study", study.manifest_path))
    theirs = LatentStore(study.latents_dir())
    trained_on = [one.item_id for one in fitted.read_fitted_on() if one.item_id in theirs.items]
    if theirs.n_latents != latents.n_latents or not trained_on:
        remark = f"How far firing rates moved is not known: {study.path} holds other neurons or none of the items."
        return [remark], {}
    rates = [
        firing_rates(store.read(ids), len(ids)) for store, ids in ((theirs, trained_on), (latents, fold.split.test))
    ]
    chosen: list[int] = []
    if "select_neurons" in given:
        chosen = best_neuron_ids(pd.read_csv(fitted.table("neurons")), cfg.summary.n_top_neurons)
    table = compare_firing(rates[0], rates[1], chosen)
    caption = (
        f"How often neurons fire on {len(trained_on)} items that the study was fitted on and on {len(fold.split.test)} "
        "here: chosen neurons first, then those that moved most."
    )
    rundir.add_table("firing_shift", table, caption, 15)
    rundir.add_figure("firing_shift", plot_firing_shift(table), "Firing rates of all neurons, the chosen ones named.")
    return [], {f"shift/{key}": value for key, value in describe_shift(table).items()}
