"""Which neurons carry a class: every neuron of a pooled matrix tested against slide labels and ranked."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from src.analysis.statistics import auroc_by_column, benjamini_hochberg, hedges_g, t_test

# What decides the order (descending unless negated), ties by the next, at last by neuron_id.
_ORDERS = {
    "welch": ("-p_value", "statistic"),
    "auroc": ("auroc", "statistic"),
    "effect_size": ("effect_size", "statistic"),
}
_UNITS = ("case", "slide")
_P_VALUES = ("guarded", "welch")


@dataclass(frozen=True)
class SelectionRule:
    """How neurons are tested and ranked.

    Attributes:
        method: what ranks the neurons: `welch` (p, then t), `auroc` or `effect_size`.
        unit: what counts as one observation: `case` or `slide`. Slides of one patient resemble each other, so taking
            them for independent overstates the evidence (on simulated null data of 36 slides in 24 cases: a neuron
            with q below 0.05 in 8 to 23 % of the data sets with slides, in at most 3 % with cases). Slides of one case
            and class are averaged; a case with slides of both classes counts in both groups, which errs on the
            careful side. Where each case has one slide, the two are the same.
        p_value: `welch`, or `guarded`, the larger of Welch's and the pooled-variance p. Welch's test trusts each
            group's own variance, and a sparse neuron that happens to be silent in a small group has none: on simulated
            null data with 6 negative of 24 cases a neuron has q below 0.05 in 17 % of the data sets, with 16 of 66 in
            33 %; guarded in at most 5 % whatever the balance. Groups of one size give the same p below 0.5 both ways.

    Raises:
        ValueError: when a choice is unknown.
    """

    method: str = "welch"
    unit: str = "case"
    p_value: str = "guarded"

    def __post_init__(self) -> None:
        for name, known in (("method", tuple(_ORDERS)), ("unit", _UNITS), ("p_value", _P_VALUES)):
            if getattr(self, name) not in known:
                raise ValueError(f"Expected selection.{name} to be one of {known}, got {getattr(self, name)!r}.")


def rank_neurons(
    maxima: np.ndarray,
    labels: np.ndarray,
    case_ids: Sequence[str],
    classes: Sequence[str],
    density: np.ndarray | None = None,
    rule: SelectionRule | None = None,
) -> pd.DataFrame:
    """Tests every neuron one-sided for being higher in a class, and ranks them.

    Of two classes the last is the positive one; with more, each class is tested against the rest and the correction
    (Benjamini-Hochberg) runs over all tests together. A neuron that is constant cannot be tested: it stays in the
    table, last, with NaN for statistic, p, q and effect size.

    Args:
        maxima: [n_slides, n_neurons] slide-level values.
        labels: [n_slides] int, positions in `classes`.
        case_ids: the case of each slide.
        classes: class names.
        density: [n_neurons] share of patches on which a neuron fires, carried into the table.
        rule: how to test and rank.

    Returns:
        Columns rank (from 1), neuron_id, statistic (Welch's t), p_value (one-sided), q_value, effect_size (Hedges' g),
        auroc, mean_positive, mean_negative, density; and class, when there are more than two. Best first.

    Raises:
        ValueError: when a class has fewer than two cases (or slides).
    """
    rule = rule or SelectionRule()
    if rule.unit == "case":
        maxima, labels = average_cases(maxima, labels, case_ids)
    tested = range(len(classes)) if len(classes) > 2 else (1,)
    tables = []
    for class_index in tested:
        counts = int((labels == class_index).sum()), int((labels != class_index).sum())
        if min(counts) < 2:
            raise ValueError(
                f"Expected at least two {rule.unit}s of class {classes[class_index]!r} and two others, got "
                f"{counts[0]} and {counts[1]}: use more items (selection.split=train+val) or another split."
            )
        table = _test_neurons(maxima, labels == class_index, rule)
        table["density"] = np.nan if density is None else density
        if len(classes) > 2:
            table["class"] = classes[class_index]
        tables.append(table)
    table = pd.concat(tables, ignore_index=True)
    table.insert(3, "q_value", benjamini_hochberg(table["p_value"].to_numpy()))
    return _ranked(table, rule.method)


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


def average_cases(maxima: np.ndarray, labels: np.ndarray, case_ids: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Averages the slides of each case and class into one row.

    A mean and not a maximum, because the maximum of more slides is larger whatever they show.

    Args:
        maxima: [n_slides, n_neurons].
        labels: [n_slides] int.
        case_ids: the case of each slide.

    Returns:
        [n_units, n_neurons] float64 and [n_units] labels.
    """
    groups = pd.MultiIndex.from_arrays([list(case_ids), labels])
    codes, units = pd.factorize(groups)
    sums = np.zeros((len(units), maxima.shape[1]))
    np.add.at(sums, codes, maxima.astype(np.float64))
    return sums / np.bincount(codes)[:, None], np.array([label for _, label in units])


def _test_neurons(values: np.ndarray, is_positive: np.ndarray, rule: SelectionRule) -> pd.DataFrame:
    positive, negative = values[is_positive], values[~is_positive]
    statistic, p_value = t_test(positive, negative, equal_variances=False)
    if rule.p_value == "guarded":
        p_value = np.maximum(p_value, t_test(positive, negative, equal_variances=True)[1])
    return pd.DataFrame(
        {
            "neuron_id": np.arange(values.shape[1]),
            "statistic": statistic,
            "p_value": p_value,
            "effect_size": hedges_g(positive, negative),
            "auroc": auroc_by_column(values, is_positive),
            "mean_positive": positive.mean(axis=0, dtype=np.float64),
            "mean_negative": negative.mean(axis=0, dtype=np.float64),
        }
    )


def _ranked(table: pd.DataFrame, method: str) -> pd.DataFrame:
    keys = {"untestable": table["p_value"].isna()}
    for key in _ORDERS[method]:
        keys[key] = table["p_value"] if key == "-p_value" else -table[key]
    keys["neuron_id"] = table["neuron_id"]
    order = pd.DataFrame(keys).sort_values(list(keys), kind="stable").index
    table = table.loc[order].reset_index(drop=True)
    table.insert(0, "rank", np.arange(1, len(table) + 1))
    return table
