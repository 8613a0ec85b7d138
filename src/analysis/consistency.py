"""Whether two sets of items name the same neurons for a class."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from src.analysis.class_statistics import ClassStatistics, class_scores


def compare_rankings(
    first: ClassStatistics, second: ClassStatistics, top_k: Sequence[int], rule: str = "contrast"
) -> pd.DataFrame:
    """Compares the neurons that two sets of items put first for each class.

    By chance two lists of k out of n neurons share k k / n (the mean of the hypergeometric distribution). Neurons that
    fire in neither set are in no list and are not counted among the n, so that chance is not made to look small.

    Args:
        first: of one set of items.
        second: of another, with the same SAE.
        top_k: lengths of the lists.
        rule: of the rankings, see `rank_neurons_for_classes`.

    Returns:
        For each class that both sets have, and each k: `class`, `k` (the neurons that fire, when fewer), `overlap`, the
        share of the k neurons that both name; `expected_overlap` by chance; `p_chance`, the probability of at least
        this overlap by chance; `rank_correlation` (Spearman's, of the scores of all neurons that fire), `n_neurons`,
        `n_items_first`, `n_items_second`.

    Raises:
        ValueError: when the sets have other classes or numbers of neurons.
    """
    if first.classes != second.classes or first.means.shape != second.means.shape:
        raise ValueError(
            f"Expected statistics of the same classes and neurons, got {list(first.classes)} of {first.means.shape} "
            f"and {list(second.classes)} of {second.means.shape}."
        )
    shared = np.flatnonzero((first.n_items > 0) & (second.n_items > 0))
    first, second = _of_classes(first, shared), _of_classes(second, shared)
    columns = ["class", "k", "overlap", "expected_overlap", "p_chance", "rank_correlation"]
    columns += ["n_neurons", "n_items_first", "n_items_second"]
    if not len(shared) or (rule == "contrast" and len(shared) < 2):
        return pd.DataFrame(columns=columns)
    alive = np.flatnonzero(((first.means > 0) | (second.means > 0)).any(axis=0))
    scores = [class_scores(one, rule)[:, alive] for one in (first, second)]
    rows = []
    for index, name in enumerate(first.classes):
        of_first, of_second = scores[0][index], scores[1][index]
        order = [np.argsort(-one, kind="stable") for one in (of_first, of_second)]
        correlation = _spearman(of_first, of_second)
        for k in dict.fromkeys(min(k, len(alive)) for k in top_k):
            n_shared = len(np.intersect1d(order[0][:k], order[1][:k]))
            chance = stats.hypergeom(len(alive), k, k)
            overlap = (n_shared / k, k / len(alive), float(chance.sf(n_shared - 1))) if k else (np.nan,) * 3
            counts = (len(alive), int(first.n_items[index]), int(second.n_items[index]))
            rows.append((name, k, *overlap, correlation, *counts))
    return pd.DataFrame(rows, columns=columns)


def mean_consistency(table: pd.DataFrame) -> dict[str, float]:
    """Returns the means over classes of a table of `compare_rankings`, for its shortest lists.

    Returns:
        `overlap`, `expected` (by chance) and `correlation`.
    """
    shown = table[table["k"] == table["k"].min()]
    names = {"overlap": "overlap", "expected": "expected_overlap", "correlation": "rank_correlation"}
    means: Any = shown[list(names.values())].mean()
    return {name: float(means[column]) for name, column in names.items()}


def halve_cases(case_ids: Sequence[str], labels: np.ndarray, seed: int) -> np.ndarray:
    """Puts the cases of each label into two halves of equal size, up to one case.

    Args:
        case_ids: the case of each item.
        labels: [n_items] int, of the items; a case counts where its first item does.
        seed: of the draw.

    Returns:
        [n_items] int64, 0 or 1; the items of a case are in one half.
    """
    codes, cases = pd.factorize(np.array(case_ids, dtype=object))
    label_of_case = np.empty(len(cases), labels.dtype)
    label_of_case[codes[::-1]] = labels[::-1]
    # By name first, so that the order of the items decides nothing.
    by_name = np.argsort(np.array(cases, dtype=str), kind="stable")
    drawn = by_name[np.random.default_rng(seed).permutation(len(cases))]
    ordered = drawn[np.argsort(label_of_case[drawn], kind="stable")]
    half_of_case = np.empty(len(cases), np.int64)
    half_of_case[ordered] = np.arange(len(cases)) % 2
    return half_of_case[codes]


def _of_classes(statistics: ClassStatistics, kept: np.ndarray) -> ClassStatistics:
    classes = tuple(statistics.classes[index] for index in kept)
    return ClassStatistics(classes, statistics.n_items[kept], statistics.means[kept], statistics.counts[kept])


def _spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Returns Spearman's rank correlation; NaN where one side is constant."""
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return np.nan
    return float(np.corrcoef(stats.rankdata(first), stats.rankdata(second))[0, 1])
