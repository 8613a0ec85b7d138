"""How often a selection of neurons finds something in labels that mean nothing."""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from src.analysis.selection import SelectionRule, rank_neurons


def permute_labels(labels: np.ndarray, case_ids: Sequence[str], seed: int) -> np.ndarray:
    """Deals the cases' labels out anew: every slide of a case gets the label of one drawn case.

    A case whose slides differ in label passes on its highest, as in multiple-instance learning.

    Args:
        labels: [n_slides] int.
        case_ids: the case of each slide.
        seed: of the permutation.
    """
    codes, cases = pd.factorize(np.asarray(case_ids, dtype=object))
    case_labels = np.full(len(cases), np.min(labels))
    np.maximum.at(case_labels, codes, labels)
    return np.random.default_rng(seed).permutation(case_labels)[codes]


def count_chance_findings(
    maxima: np.ndarray,
    labels: np.ndarray,
    case_ids: Sequence[str],
    classes: Sequence[str],
    seeds: Iterable[int],
    rule: SelectionRule | None = None,
    q_threshold: float = 0.05,
) -> int:
    """Counts the permutations of labels by case under which some neuron still has a q-value below the threshold.

    A selection that controls the false discovery rate has such findings in about `q_threshold` of the permutations.

    Args:
        maxima: [n_slides, n_neurons] slide-level values.
        labels: [n_slides] int, positions in `classes`.
        case_ids: the case of each slide.
        classes: class names.
        seeds: one permutation each.
        rule: how to test.
        q_threshold: what counts as found.
    """
    found = 0
    for seed in seeds:
        table = rank_neurons(maxima, permute_labels(labels, case_ids, seed), case_ids, classes, rule=rule)
        found += bool((table["q_value"] < q_threshold).any())
    return found
