"""Ranks neurons, and raw activation channels, by how well they tell the slide labels of train slides."""

import logging
from typing import Any

import numpy as np
import pandas as pd

from src.analysis.figures import plot_volcano
from src.analysis.pooling import PooledItems, pool_items
from src.analysis.selection import SelectionRule, rank_neurons
from src.csv_tables import some
from src.data.fold import open_fold
from src.data.fold_table import FoldTable, read_fold
from src.records import PARTS, FittedItem
from src.report.page import Page
from src.runs.rundir import RunDir
from src.stores.latents.store import LatentStore
from src.wording import words_of

_LOGGER = logging.getLogger(__name__)
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
    table = read_fold(cfg, cfg.fold, ())
    selection = cfg.selection
    parts, words = selection.split, words_of(cfg.dataset)
    rundir.record(*(table.input(what) for what in ("split train+val+test", "cases all", f"labels {parts}", "classes")))
    encoded = rundir.upstream("encode")
    latents = LatentStore(encoded.latents_dir())
    if held_out := "+".join(part for part in PARTS if part not in parts.split("+")):
        rundir.refuse_leakage(encoded, _fitted(table, latents, held_out))
    labelled = set(table.labelled(parts))
    fitted = [item for item in _fitted(table, latents, parts) if item.item_id in labelled]
    rundir.pass_on_fitted(encoded, fitted)
    item_ids = [item.item_id for item in fitted]
    rule = SelectionRule(selection.method, selection.unit, selection.p_value)

    neurons = _rank(table, pool_items(latents.read(item_ids), item_ids), rule)
    columns = [column for column in _SHOWN_COLUMNS if column in neurons]
    rundir.add_table("neurons", neurons, "Neurons, best first.", 10, columns)
    if selection.channels:
        fold = open_fold(cfg)
        rundir.record(*fold.inputs(f"activations {parts}"))
        rows = (fold.store.rows(item_id) for item_id in item_ids)
        pieces = ((np.full(len(of_item), code), of_item) for code, of_item in enumerate(rows))
        channels = _rank(table, pool_items(pieces, item_ids), rule)
        caption = "Raw activation channels (neuron_id is the channel), ranked the same way."
        rundir.add_table("channels", channels, caption, 5, columns)
    results = _results(neurons)
    _LOGGER.info(
        "%d of %d tested neurons have q < %g on %d %s %s; best: %d.",
        *(results["n_found"], results["n_tested"], _Q_THRESHOLD, len(item_ids), selection.split, words.items),
        results["neuron_id"],
    )
    figure = plot_volcano(neurons, words=words)
    rundir.add_figure("volcano", figure, "Effect size (Hedges' g) and q-value of every neuron.")
    target = table.classes[-1] if len(table.classes) == 2 else "each class against the rest"
    text = (
        f"Every neuron's maximum over each {words.item}, tested for being higher in {target}: Welch's t over "
        f"{rule.unit}s of the {parts} {words.items}, one-sided, Benjamini-Hochberg over all tests. "
        f"{results['n_found']} of {results['n_tested']} tested neurons have q below {_Q_THRESHOLD}."
    )
    rundir.write_page(Page(f"Neurons that tell the {words.item} label", [text], results))
    return results


def _fitted(table: FoldTable, latents: LatentStore, parts: str) -> list[FittedItem]:
    """Returns what the leakage rule needs to know of the encoded items of a part or union of parts.

    Items without latents had no usable activations, and were left out when they were encoded.
    """
    listed = table.item_ids(parts)
    if missing := [item_id for item_id in listed if item_id not in latents.items]:
        _LOGGER.warning("%d of %d items of %s were not encoded: %s.", len(missing), len(listed), parts, some(missing))
    found = [latents.items[item_id] for item_id in listed if item_id in latents.items]
    return [FittedItem(one.item_id, table.items[one.item_id].case_id, one.digest, one.n_rows) for one in found]


def _rank(table: FoldTable, pooled: PooledItems, rule: SelectionRule) -> pd.DataFrame:
    labels = np.array([table.label_index(item_id) for item_id in pooled.item_ids])
    case_ids = [table.items[item_id].case_id for item_id in pooled.item_ids]
    return rank_neurons(pooled.maxima, labels, case_ids, table.classes, pooled.density, rule)


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
