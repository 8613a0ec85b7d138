"""Ranks neurons, and raw activation channels, by how well they tell the slide labels of train slides."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from src.analysis.confounder_figure import confounder_aurocs, plot_confounder
from src.analysis.figures import plot_volcano
from src.analysis.logistic_weights import mil_weights, stack_rows
from src.analysis.pooling import PooledItems, pool_items
from src.analysis.published_selection import SAE1N_CSV, tabulate_sae1n
from src.analysis.selection import NeuronSelection
from src.analysis.selection_rule import SelectionRule
from src.analysis.stability import bootstrap_stability
from src.csv_tables import some
from src.data.current_inputs import CurrentInputs
from src.data.fold import open_fold
from src.data.fold_table import FoldTable, read_fold
from src.data.strata import read_strata
from src.records import PARTS, FittedItem
from src.report.page import Page
from src.runs.rundir import RunDir
from src.stores.latents.store import LatentStore
from src.wording import words_of

_LOGGER = logging.getLogger(__name__)
_Q_THRESHOLD = 0.05
_SHOWN_COLUMNS = ("rank", "neuron_id", "class", "statistic", "p_value", "q_value", "effect_size", "effect_low")
_SHOWN_COLUMNS += ("effect_high", "auroc", "weight", "confounder_auroc", "top_share", "density")
_TESTS = {"welch": "Welch's t", "mann_whitney": "Mann and Whitney's test", "auroc": "AUROC"}
_TESTS |= {"effect_size": "Hedges' g", "logistic": "logistic regression", "mil_weights": "a linear MIL classifier"}
_CORRECTIONS = {"bh": "Benjamini-Hochberg", "max_t": "max-T permutation"}


def run(cfg: Any, rundir: RunDir) -> dict[str, float]:
    """Writes `analysis/neurons.csv` and `analysis/channels.csv`, best first, and the csv of `selection.export`.

    Returns:
        The best neuron, its q-value, AUROC and effect size on the slides it was selected on, and how many neurons could
        be tested and were found.

    Raises:
        ValueError: when the SAE was fitted on cases that are held out here, a class has too few cases, or the
            confounder cannot be told from the label.
    """
    table = read_fold(cfg, cfg.fold, ())
    selection = cfg.selection
    parts, words = selection.split, words_of(cfg.dataset)
    rundir.record(*(table.input(what) for what in ("split train+val+test", "cases all", f"labels {parts}", "classes")))
    if selection.adjust_for:
        rundir.record(*CurrentInputs(cfg).read(f"strata {parts}"))
    encoded = rundir.upstream("encode")
    latents = LatentStore(encoded.latents_dir())
    if held_out := "+".join(part for part in PARTS if part not in parts.split("+")):
        rundir.refuse_leakage(encoded, _fitted(table, latents, held_out))
    labelled = set(table.labelled(parts))
    fitted = [item for item in _fitted(table, latents, parts) if item.item_id in labelled]
    rundir.pass_on_fitted(encoded, fitted)
    item_ids = [item.item_id for item in fitted]
    ranking = _Ranking.of(cfg, table, item_ids)

    pooled = pool_items(latents.read(item_ids), item_ids, selection.pool, selection.top_share)
    weights = None
    if selection.method == "mil_weights":
        tested = range(len(table.classes)) if len(table.classes) > 2 else (1,)
        weights = mil_weights(*stack_rows(latents.read(item_ids)), ranking.labels, tuple(tested))
    fit = ranking.fit(pooled, weights)
    neurons = ranking.with_stability(fit.scores, pooled, selection.n_top, selection.n_bootstrap)
    if ranking.strata is not None:
        _LOGGER.info("Compared within %s: %s.", ", ".join(selection.adjust_for), sorted(set(ranking.strata)))
        if fit.left_out:
            _LOGGER.warning("Left out, with fewer than two %ss of a class: %s.", ranking.rule.unit, some(fit.left_out))
    columns = [column for column in _SHOWN_COLUMNS if column in neurons]
    rundir.add_table("neurons", neurons, "Neurons, best first.", 10, columns)
    _export(selection, rundir, table, pooled, ranking.labels)
    if selection.channels:
        _rank_channels(cfg, rundir, ranking, columns)
    results = _results(neurons)
    _LOGGER.info(
        "%d of %d tested neurons have q < %g on %d %s %s; best: %d.",
        *(results["n_found"], results["n_tested"], _Q_THRESHOLD, len(item_ids), selection.split, words.items),
        results["neuron_id"],
    )
    untested = (
        f"{fit.n_untested} neurons are constant and were not tested; {fit.n_tied} have the values of another one; "
        f"{fit.n_best_tied} share the best one's p-value."
    )
    _LOGGER.info(untested)
    figure = plot_volcano(neurons, words=words)
    rundir.add_figure("volcano", figure, "Effect size (Hedges' g) and q-value of every neuron.")
    if ranking.strata is not None:
        named = ", ".join(selection.adjust_for)
        caption = f"How well each neuron tells {named} among {words.items} of one class, and the class within {named}."
        rundir.add_figure("confounder", plot_confounder(neurons, named), caption)
    target = table.classes[-1] if len(table.classes) == 2 else "each class against the rest"
    sided = "two-sided" if ranking.rule.is_two_sided else "one-sided"
    within = f" within {' and '.join(selection.adjust_for)}" if selection.adjust_for else ""
    text = (
        f"Every neuron pooled over each {words.item} ({selection.pool}) and compared{within} for {target}: "
        f"{_TESTS[ranking.rule.method]} over {ranking.rule.unit}s of the {parts} {words.items}, {sided}, "
        f"{_CORRECTIONS[ranking.rule.correction]} over all tests. "
        f"{results['n_found']} of {results['n_tested']} tested neurons have q below {_Q_THRESHOLD}. {untested}"
    )
    rundir.write_page(Page(f"Neurons that tell the {words.item} label", [text], results))
    return results


@dataclass(frozen=True)
class _Ranking:
    """What neurons and channels are ranked by: labels, cases and confounders of the items, and the rule."""

    item_ids: list[str]
    rule: SelectionRule
    classes: tuple[str, ...]
    labels: np.ndarray
    case_ids: list[str]
    strata: Sequence[str] | None

    @classmethod
    def of(cls, cfg: Any, table: FoldTable, item_ids: list[str]) -> "_Ranking":
        selection = cfg.selection
        rule = SelectionRule(
            *(selection[key] for key in ("method", "unit", "p_value", "alternative", "correction", "n_permutations")),
            seed=cfg.seed,
        )
        columns = selection.adjust_for
        strata = read_strata(table.metadata_csv, columns, item_ids) if columns else None
        labels = np.array([table.label_index(item_id) for item_id in item_ids])
        case_ids = [table.items[item_id].case_id for item_id in item_ids]
        return cls(item_ids, rule, table.classes, labels, case_ids, strata)

    def fit(self, pooled: PooledItems, weights: np.ndarray | None = None) -> NeuronSelection:
        known = (self.labels, self.case_ids, self.classes, pooled.density, self.strata, weights)
        return NeuronSelection(self.rule).fit(pooled.values, *known)

    def with_stability(self, neurons: pd.DataFrame, pooled: PooledItems, n_top: int, n_draws: int) -> pd.DataFrame:
        """Returns the ranking with `top_share`, and with `confounder_auroc` where it is adjusted for one."""
        keys = ["neuron_id", "class"] if "class" in neurons else ["neuron_id"]
        if n_draws:
            known = (self.labels, self.case_ids, self.classes, self.rule, self.strata, n_top, n_draws)
            neurons = neurons.merge(bootstrap_stability(pooled.values, *known), on=keys, how="left")
        if self.strata is not None:
            neurons = neurons.assign(
                confounder_auroc=confounder_aurocs(pooled.values, self.labels, self.strata)[neurons["neuron_id"]]
            )
        return neurons


def _rank_channels(cfg: Any, rundir: RunDir, ranking: _Ranking, columns: list[str]) -> None:
    fold = open_fold(cfg)
    selection = cfg.selection
    rundir.record(*fold.inputs(f"activations {selection.split}"))
    item_ids = ranking.item_ids
    rows = (fold.store.rows(item_id) for item_id in item_ids)
    pieces = ((np.full(len(of_item), code), of_item) for code, of_item in enumerate(rows))
    if ranking.rule.method == "mil_weights":  # weights of channels, which have any sign, do not rank them
        ranking = replace(ranking, rule=replace(ranking.rule, method="welch"))
    channels = ranking.fit(pool_items(pieces, item_ids, selection.pool, selection.top_share)).scores
    caption = "Raw activation channels (neuron_id is the channel), ranked the same way."
    rundir.add_table("channels", channels, caption, 5, [column for column in columns if column in channels])


def _export(selection: Any, rundir: RunDir, table: FoldTable, pooled: PooledItems, labels: np.ndarray) -> None:
    if "sae1n" in selection.export:
        if len(table.classes) != 2:
            raise ValueError(
                f"Expected two classes for the csv of sae1n, got {list(table.classes)}: give selection.export=[]."
            )
        negative, positive = table.classes
        published = tabulate_sae1n(pooled.values, labels == 1, positive, negative)
        published.to_csv(rundir.table(SAE1N_CSV), index=False)


def _fitted(table: FoldTable, latents: LatentStore, parts: str) -> list[FittedItem]:
    """Returns what the leakage rule needs to know of the encoded items of a part or union of parts.

    Items without latents had no usable activations, and were left out when they were encoded.
    """
    listed = table.item_ids(parts)
    if missing := [item_id for item_id in listed if item_id not in latents.items]:
        _LOGGER.warning("%d of %d items of %s were not encoded: %s.", len(missing), len(listed), parts, some(missing))
    found = [latents.items[item_id] for item_id in listed if item_id in latents.items]
    return [FittedItem(one.item_id, table.items[one.item_id].case_id, one.digest, one.n_rows) for one in found]


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
