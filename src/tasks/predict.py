"""Applies classifiers and a ranking of neurons that were fitted on another study to the test items of a fold."""

import logging
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score

from src import config
from src.activation_spec import require_same_spec
from src.analysis.cross_validation import fold_metrics
from src.analysis.methods import read_methods, write_methods
from src.analysis.pooling import pool_items
from src.analysis.selection import best_neuron_ids
from src.analysis.slide_metrics import METRICS
from src.data.feeding.bags import activation_bags, latent_bags
from src.data.fold import FoldData, open_fold, tabulate_predictions
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

    Returns:
        `n_items`, `n_labelled`, and where test items of two classes have labels `test/<method>_<metric>` and
        `test/neuron_maximum_auroc`.

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
        predictions, results = _classify(rundir, fold, latents)
        rundir.add_table("predictions", predictions, "Probabilities of every classifier.", 5)
    if "select_neurons" in given:
        results |= _score_by_neuron(rundir, fold, latents)
    labelled = [item_id for item_id in fold.split.test if fold.items[item_id].label is not None]
    results |= {"n_items": len(fold.split.test), "n_labelled": len(labelled)}
    text = (
        f"{results['n_items']:g} items, {results['n_labelled']:g} of them with a label, to which was applied what "
        f"another study fitted: {', '.join(f'{task} {path}' for task, path in given.items())}. Nothing was fitted here."
    )
    numbers = {key: value for key, value in results.items() if key.startswith("test/")}
    rundir.write_page(Page("Applied to this cohort", [text], numbers))
    return results


def _classify(rundir: RunDir, fold: FoldData, latents: LatentStore) -> tuple[pd.DataFrame, dict[str, float]]:
    fitted = rundir.trusted_upstream("train_mil", fold.fitted("test"))
    methods = read_methods(fitted.table("methods"))
    write_methods(methods, rundir.table("methods"))
    tables = [_predict(fitted, name, fold, latents, rundir) for name in track(methods, "Applying classifiers")]
    predictions = pd.concat(tables, ignore_index=True)
    labelled: Any = predictions[predictions["label"].notna()]
    if labelled["label"].nunique() < 2:
        return predictions, {}
    metrics: Any = fold_metrics(labelled.assign(fold=0)).to_dict("records")
    return predictions, {f"test/{row['method']}_{name}": row[name] for row in metrics for name in METRICS}


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


def _score_by_neuron(rundir: RunDir, fold: FoldData, latents: LatentStore) -> dict[str, float]:
    ranked = rundir.trusted_upstream("select_neurons", fold.fitted("test"))
    require_same_sae(rundir, ranked)
    ranking = pd.read_csv(ranked.table("neurons"))
    (neuron_id,) = best_neuron_ids(ranking, 1)
    item_ids = list(fold.split.test)

    column = ((codes, rows.columns([neuron_id]).numpy()) for codes, rows in latents.read(item_ids))
    maxima = pool_items(column, item_ids).maxima[:, 0]
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
    return results
