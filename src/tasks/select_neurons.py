"""Ranks neurons, and raw activation channels, by how well they tell the slide labels of train slides."""

import logging
from typing import Any

import numpy as np
import pandas as pd

from src.analysis.figures import plot_volcano, save_figure
from src.analysis.pooling import PooledSlides, pool_slides
from src.analysis.selection import SelectionRule, rank_neurons
from src.data.fold import FoldData, open_fold
from src.records import PARTS
from src.report.page import Page, PageFigure, PageTable
from src.runs.rundir import RunDir
from src.stores.latents import LatentStore

_LOGGER = logging.getLogger(__name__)
_PAGE_ORDER = 60
_Q_THRESHOLD = 0.05
_SHOWN_COLUMNS = ("rank", "neuron_id", "class", "statistic", "p_value", "q_value", "effect_size", "auroc", "density")


def run(cfg: Any, rundir: RunDir) -> dict[str, float]:
    """Writes `analysis/neurons.csv` and `analysis/channels.csv`, best first.

    Returns:
        The best neuron, its q-value, AUROC and effect size on the slides it was selected on, and how many neurons could
        be tested and were found.

    Raises:
        ValueError: when the SAE was fitted on cases that are held out here, or a class has too few cases.
    """
    fold = open_fold(cfg.dataset, cfg.fold, cfg.paths.cache)
    selection = cfg.selection
    held_out = "+".join(part for part in PARTS if part not in selection.split.split("+"))
    parts = selection.split
    rundir.record(
        *fold.inputs("split train+val+test", "cases all", f"labels {parts}", "classes", f"activations {parts}")
    )
    encoded = rundir.upstream("encode")
    if held_out:
        rundir.refuse_leakage(encoded, fold.fitted(held_out))
    store = LatentStore(encoded.latents_dir())
    item_ids = fold.split.item_ids(parts)
    rundir.pass_on_fitted(encoded, fold.fitted(parts))
    rule = SelectionRule(selection.method, selection.unit, selection.p_value)

    neurons = _rank(fold, pool_slides(lambda item_id: store.read(item_id).latents, item_ids), rule)
    neurons.to_csv(rundir.table("neurons"), index=False)
    if selection.channels:
        channels = _rank(fold, pool_slides(fold.store.rows, item_ids), rule)
        channels.to_csv(rundir.table("channels"), index=False)
    results = _results(neurons)
    _LOGGER.info(
        "%d of %d tested neurons have q < %g on %d %s slides; best: %d.",
        *(results["n_found"], results["n_tested"], _Q_THRESHOLD, len(item_ids), selection.split, results["neuron_id"]),
    )
    _write_page(rundir, fold, neurons, results, rule, selection)
    return results


def _rank(fold: FoldData, pooled: PooledSlides, rule: SelectionRule) -> pd.DataFrame:
    labels = np.array([fold.label_index(item_id) for item_id in pooled.item_ids])
    case_ids = [fold.items[item_id].case_id for item_id in pooled.item_ids]
    return rank_neurons(pooled.maxima, labels, case_ids, fold.classes, pooled.density, rule)


def _results(neurons: pd.DataFrame) -> dict[str, Any]:
    best: Any = neurons.iloc[0]
    return {
        "neuron_id": int(best["neuron_id"]),
        "q_value": float(best["q_value"]),
        "train/auroc": float(best["auroc"]),
        "train/effect_size": float(best["effect_size"]),
        "n_tested": int(np.count_nonzero(neurons["p_value"].notna())),
        "n_found": int(np.count_nonzero(neurons["q_value"] < _Q_THRESHOLD)),
    }


def _write_page(
    rundir: RunDir, fold: FoldData, neurons: pd.DataFrame, results: dict[str, Any], rule: SelectionRule, selection: Any
) -> None:
    save_figure(plot_volcano(neurons), rundir.plot("volcano"))
    target = fold.classes[-1] if len(fold.classes) == 2 else "each class against the rest"
    columns = tuple(column for column in _SHOWN_COLUMNS if column in neurons)
    tables = [PageTable(rundir.table("neurons"), "Neurons, best first.", 10, columns)]
    if selection.channels:
        caption = "Raw activation channels (neuron_id is the channel), ranked the same way."
        tables.append(PageTable(rundir.table("channels"), caption, 5, columns))
    rundir.write_page(
        Page(
            title="Neurons that tell the slide label",
            order=_PAGE_ORDER,
            paragraphs=(
                f"Every neuron's maximum over a slide, tested for being higher in {target}: Welch's t over "
                f"{rule.unit}s of the {selection.split} slides, one-sided, Benjamini-Hochberg over all tests. "
                f"{results['n_found']} of {results['n_tested']} tested neurons have q below {_Q_THRESHOLD}.",
            ),
            numbers=results,
            figures=(PageFigure(rundir.plot("volcano"), "Effect size (Hedges' g) and q-value of every neuron."),),
            tables=tuple(tables),
        )
    )
