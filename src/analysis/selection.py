"""Which neurons carry a class: every neuron of a pooled matrix tested against item labels and ranked."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from src.analysis.logistic_weights import logistic_weights
from src.analysis.permutation import Kernel, max_t_p_values, rank_kernel, t_kernel
from src.analysis.selection_rule import ORDERS, WEIGHTED, SelectionRule
from src.analysis.statistics import benjamini_hochberg
from src.analysis.stratified import (
    Stratum,
    rank_test,
    stratified_auroc,
    stratified_g,
    stratified_t,
    usable_strata,
)


class NeuronSelection:
    """Ranks neurons by labels: `fit`, then `scores`.

    Attributes:
        scores: the table of `rank_neurons`, best first.
        n_untested: neurons that are constant, and so cannot be tested.
        n_tied: neurons whose values are those of another one on every item.
        n_best_tied: neurons that share the best one's p-value.
        left_out: the strata with fewer than two observations of a side of a test, which say nothing, by name.

    Args:
        rule: how to test and rank.
    """

    scores: pd.DataFrame
    n_untested: int
    n_tied: int
    n_best_tied: int
    left_out: tuple[str, ...]

    def __init__(self, rule: SelectionRule | None = None) -> None:
        self.rule = rule or SelectionRule()

    def fit(
        self,
        values: np.ndarray,
        labels: np.ndarray,
        case_ids: Sequence[str],
        classes: Sequence[str],
        density: np.ndarray | None = None,
        strata: Sequence[str] | None = None,
        weights: np.ndarray | None = None,
    ) -> "NeuronSelection":
        """Tests and ranks; see `rank_neurons`."""
        self.scores = rank_neurons(values, labels, case_ids, classes, density, self.rule, strata, weights)
        tested = self.scores["p_value"].notna()
        self.n_untested = self.scores.loc[~tested, "neuron_id"].nunique()
        varying = np.ascontiguousarray(values[:, np.ptp(values, axis=0) > 0].T)
        self.n_tied = len(varying) - len({column.tobytes() for column in varying})
        self.n_best_tied = int((self.scores["p_value"] == self.scores["p_value"].iloc[0]).sum()) - 1
        self.left_out = ()
        if strata is not None:
            _, unit_labels, unit_strata, _ = to_units(values[:, :1], labels, case_ids, self.rule, strata)
            names = pd.unique(np.asarray(strata, dtype=object))
            tested_classes = range(len(classes)) if len(classes) > 2 else (1,)
            codes = {code for one in tested_classes for code in usable_strata(unit_labels == one, unit_strata)[1]}
            self.left_out = tuple(str(names[code]) for code in sorted(codes))
        return self


def rank_neurons(
    maxima: np.ndarray,
    labels: np.ndarray,
    case_ids: Sequence[str],
    classes: Sequence[str],
    density: np.ndarray | None = None,
    rule: SelectionRule | None = None,
    strata: Sequence[str] | None = None,
    weights: np.ndarray | None = None,
) -> pd.DataFrame:
    """Tests every neuron for being higher in a class, and ranks them.

    Of two classes the last is the positive one; with more, each class is tested against the rest and the correction
    runs over all tests together. A neuron that is constant cannot be tested: it stays in the table, last, with NaN for
    statistic, p, q and effect size.

    Args:
        maxima: [n_slides, n_neurons] slide-level values.
        labels: [n_slides] int, positions in `classes`.
        case_ids: the case of each slide.
        classes: class names.
        density: [n_neurons] share of patches on which a neuron fires, carried into the table.
        rule: how to test and rank.
        strata: the confounder of each slide (its centre, its scanner): classes are compared within each value, and
            the comparisons combined (`stratified_t`, `rank_test`), so that a neuron that marks the confounder gains
            nothing by it.
        weights: [n_tested_classes, n_neurons] what `mil_weights` ranks by.

    Returns:
        Columns rank (from 1), neuron_id, statistic (t, of `mann_whitney` the standardised rank sum), p_value, q_value
        (Benjamini and Hochberg's, or the family-wise p of `max_t`), effect_size (Hedges' g), effect_low, effect_high
        (its 95 % interval), auroc, mean_positive, mean_negative, density; weight where a model ranks, and class, when
        there are more than two. Best first.

    Raises:
        ValueError: when a class has fewer than two cases (or slides), or no stratum holds two of each.
    """
    rule = rule or SelectionRule()
    maxima, labels, stratum_codes, blocks = to_units(maxima, labels, case_ids, rule, strata)
    tested = tuple(range(len(classes))) if len(classes) > 2 else (1,)
    if rule.method in WEIGHTED:
        if rule.method == "logistic":
            weights = logistic_weights(maxima, labels, tested, blocks, stratum_codes, rule.seed)
        if weights is None:
            raise ValueError("Expected weights with selection.method=mil_weights, got none.")
        if strata is not None and rule.method == "mil_weights":
            raise ValueError(
                "Expected no selection.adjust_for with selection.method=mil_weights, which weighs patches of all "
                "centres together: give another method."
            )
    tables, kernels = [], []
    for place, class_index in enumerate(tested):
        is_positive = labels == class_index
        counts = int(is_positive.sum()), int((~is_positive).sum())
        if min(counts) < 2:
            raise ValueError(
                f"Expected at least two {rule.unit}s of class {classes[class_index]!r} and two others, got "
                f"{counts[0]} and {counts[1]}: use more items (selection.split=train+val) or another split."
            )
        usable, _ = usable_strata(is_positive, stratum_codes)
        table = _test_neurons(maxima, is_positive, usable, rule)
        table["density"] = np.nan if density is None else density
        if weights is not None:
            table["weight"] = weights[place]
        if len(classes) > 2:
            table["class"] = classes[class_index]
        tables.append(table)
        kernels.append(_kernel(maxima, usable, rule))
    if rule.correction == "max_t":
        moved = blocks if rule.unit == "slide" else np.arange(len(labels))
        dealt = labels, stratum_codes, moved, rule.n_permutations, rule.seed, rule.is_two_sided
        q_values = max_t_p_values(kernels, tested, *dealt)
    else:
        q_values = benjamini_hochberg(np.stack([table["p_value"].to_numpy() for table in tables]))
    table = pd.concat(tables, ignore_index=True)
    table.insert(3, "q_value", q_values.ravel())
    return _ranked(table, rule)


def best_neuron_ids(table: pd.DataFrame, n: int) -> list[int]:
    """Returns the `n` best distinct neurons of a ranking; of a one-vs-rest ranking, class by class in turn.

    Raises:
        ValueError: when the ranking holds fewer neurons.
    """
    if "class" in table:
        table = table.assign(turn=table.groupby("class").cumcount()).sort_values(["turn", "rank"])
    neuron_ids = table["neuron_id"].drop_duplicates().astype(int).tolist()
    if len(neuron_ids) < n:
        raise ValueError(f"Expected a ranking of at least {n} neurons, got {len(neuron_ids)}: ask for fewer.")
    return neuron_ids[:n]


def to_units(
    values: np.ndarray,
    labels: np.ndarray,
    case_ids: Sequence[str],
    rule: SelectionRule,
    strata: Sequence[str] | None = None,
) -> tuple[np.ndarray, ...]:
    """Returns what the rule counts as observations: values [n, n_neurons], labels, strata and cases as integers [n]."""
    stratum_codes, _ = pd.factorize(np.zeros(len(labels)) if strata is None else np.asarray(strata, dtype=object))
    blocks, _ = pd.factorize(np.asarray(case_ids, dtype=object))
    if rule.unit == "case":
        return average_cases(values, labels, stratum_codes, blocks)
    return values, labels, stratum_codes, blocks


def average_cases(maxima: np.ndarray, *groups: np.ndarray) -> tuple[np.ndarray, ...]:
    """Averages the slides of each case and class (and stratum) into one row.

    A mean and not a maximum, because the maximum of more slides is larger whatever they show.

    Args:
        maxima: [n_slides, n_neurons].
        *groups: label, stratum and case of each slide: slides that share all of them become one row.

    Returns:
        [n_units, n_neurons] float64, and the groups of the units.
    """
    codes, units = pd.factorize(pd.MultiIndex.from_arrays([list(group) for group in groups]))
    sums = np.zeros((len(units), maxima.shape[1]))
    np.add.at(sums, codes, maxima.astype(np.float64))
    return sums / np.bincount(codes)[:, None], *(np.array(column) for column in zip(*units, strict=True))


def _test_neurons(
    values: np.ndarray, is_positive: np.ndarray, strata: Sequence[Stratum], rule: SelectionRule
) -> pd.DataFrame:
    alternative = "two-sided" if rule.is_two_sided else "greater"
    if rule.method == "mann_whitney":
        statistic, p_value = rank_test(values, strata, alternative)
    else:
        statistic, p_value = stratified_t(values, strata, False, alternative)
        if rule.p_value == "guarded":
            p_value = np.maximum(p_value, stratified_t(values, strata, True, alternative)[1])
    effect, low, high = stratified_g(values, strata)
    return pd.DataFrame(
        {
            "neuron_id": np.arange(values.shape[1]),
            "statistic": statistic,
            "p_value": p_value,
            "effect_size": effect,
            "effect_low": low,
            "effect_high": high,
            "auroc": stratified_auroc(values, strata),
            "mean_positive": values[is_positive].mean(axis=0, dtype=np.float64),
            "mean_negative": values[~is_positive].mean(axis=0, dtype=np.float64),
        }
    )


def _kernel(values: np.ndarray, strata: Sequence[Stratum], rule: SelectionRule) -> Kernel:
    rows = [np.concatenate(stratum) for stratum in strata]
    if rule.method == "mann_whitney":
        return rank_kernel(values, rows)
    return t_kernel(values, rows, rule.p_value == "guarded")


def _ranked(table: pd.DataFrame, rule: SelectionRule) -> pd.DataFrame:
    keys = {"untestable": table["p_value"].isna()}
    for key in ORDERS[rule.method]:
        keys[key] = table["p_value"] if key == "-p_value" else -_strength(table, key, rule)
    keys["neuron_id"] = table["neuron_id"]
    order = pd.DataFrame(keys).sort_values(list(keys), kind="stable").index
    table = table.loc[order].reset_index(drop=True)
    table.insert(0, "rank", np.arange(1, len(table) + 1))
    return table


def _strength(table: pd.DataFrame, key: str, rule: SelectionRule) -> Any:
    """Returns what ranks: two-sided by distance from no difference. Equal p rank by the signed statistic."""
    if rule.is_two_sided and key == ORDERS[rule.method][0]:
        return (table[key] - (0.5 if key == "auroc" else 0.0)).abs()
    return table[key]
