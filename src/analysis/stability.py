"""How far a ranking of neurons depends on the items, the fold and the seed that it was made with."""

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import pandas as pd

from src.analysis.permutation import bootstrap_statistics, t_kernel
from src.analysis.selection import to_units
from src.analysis.selection_rule import SelectionRule
from src.analysis.stratified import usable_strata


def bootstrap_stability(
    values: np.ndarray,
    labels: np.ndarray,
    case_ids: Sequence[str],
    classes: Sequence[str],
    rule: SelectionRule,
    strata: Sequence[str] | None = None,
    n_top: int = 10,
    n_draws: int = 200,
) -> pd.DataFrame:
    """Returns in which share of bootstrap draws of the observations each neuron is among the `n_top` best.

    Stability selection as N. Meinshausen and P. Buhlmann, J. R. Statist. Soc. B 72 (2010), with bootstrap draws in
    place of halves. Neurons are ranked by t, whatever the rule ranks them by.

    Args:
        values: as `rank_neurons`, and so the next five.
        labels: see there.
        case_ids: see there.
        classes: see there.
        rule: what counts as one observation, and how it is tested.
        strata: see there.
        n_top: how many count as the best.
        n_draws: of the bootstrap.

    Returns:
        neuron_id and top_share, and class when there are more than two.
    """
    values, labels, stratum_codes, _ = to_units(values, labels, case_ids, rule, strata)
    n_neurons = values.shape[1]
    n_top = min(n_top, n_neurons)
    tables = []
    for class_index in range(len(classes)) if len(classes) > 2 else (1,):
        is_positive = labels == class_index
        rows = [np.concatenate(stratum) for stratum in usable_strata(is_positive, stratum_codes)[0]]
        kernel = t_kernel(values, rows, rule.p_value == "guarded")
        hits = np.zeros(n_neurons)
        drawn = (kernel, is_positive, stratum_codes, n_neurons, n_draws, rule.seed)
        for statistics in bootstrap_statistics(*drawn):
            size = np.abs(statistics) if rule.is_two_sided else statistics
            size = np.where(np.isnan(size), -np.inf, size)
            # A stable sort of the few best: equal neurons count in the order of their ids.
            best = np.argsort(-size, axis=1, kind="stable")[:, :n_top]
            hits += np.bincount(best.ravel(), minlength=n_neurons)
        table = pd.DataFrame({"neuron_id": np.arange(n_neurons), "top_share": hits / n_draws})
        if len(classes) > 2:
            table["class"] = classes[class_index]
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def match_neurons(atoms: np.ndarray, others: np.ndarray, neuron_ids: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Returns each neuron's nearest one of another SAE by the cosine of their atoms, and that cosine, [n_asked].

    Args:
        atoms: [n_latents, d_in] of the neurons' SAE.
        others: [n_other_latents, d_in].
        neuron_ids: which neurons to match.
    """
    asked = atoms[list(neuron_ids)]
    lengths = np.linalg.norm(asked, axis=1)[:, None] * np.linalg.norm(others, axis=1)
    cosines = asked @ others.T / np.maximum(lengths, np.finfo(np.float32).tiny)
    return cosines.argmax(axis=1), cosines.max(axis=1)


def compare_selections(
    rankings: Mapping[str, Sequence[int]], atoms: Mapping[str, np.ndarray], n_top: int = 10
) -> pd.DataFrame:
    """Compares the best neurons of runs, each with an SAE of its own.

    Args:
        rankings: of each run, its neurons, best first.
        atoms: of each run, [n_latents, d_in].
        n_top: how many count as the best.

    Returns:
        A row a pair of runs: first, second; overlap, the share of the first's best whose nearest neuron in the second
        is among the second's best, averaged with the same the other way round; cosine, the mean of those nearest;
        best_cosine, that of the first's best neuron; best_rank, where its nearest neuron stands in the second.
    """
    rows = []
    for first, second in combinations(rankings, 2):
        shares, cosines = [], []
        for one, other in ((first, second), (second, first)):
            best = list(rankings[one])[:n_top]
            nearest, cosine = match_neurons(atoms[one], atoms[other], best)
            shares.append(np.isin(nearest, list(rankings[other])[:n_top]).mean())
            cosines.append((nearest, cosine))
        nearest, cosine = cosines[0]
        rank = list(rankings[second]).index(int(nearest[0])) + 1
        mean_cosine = np.concatenate([one for _, one in cosines]).mean()
        rows.append((first, second, float(np.mean(shares)), float(mean_cosine), float(cosine[0]), rank))
    return pd.DataFrame(rows, columns=["first", "second", "overlap", "cosine", "best_cosine", "best_rank"])


def ranks_elsewhere(
    rankings: Mapping[str, Sequence[int]], atoms: Mapping[str, np.ndarray], n_top: int = 10
) -> pd.DataFrame:
    """Returns where the nearest neurons of the first run's best stand in every run.

    Args:
        rankings: as `compare_selections`, and so the next two.
        atoms: see there.
        n_top: see there.

    Returns:
        neuron_id (of the first run), run, rank, cosine.
    """
    first = next(iter(rankings))
    best = list(rankings[first])[:n_top]
    tables = []
    for run, ranking in rankings.items():
        nearest, cosines = match_neurons(atoms[first], atoms[run], best)
        place = {neuron_id: rank for rank, neuron_id in enumerate(ranking, start=1)}
        ranks = [place[int(neuron_id)] for neuron_id in nearest]
        tables.append(pd.DataFrame({"neuron_id": best, "run": run, "rank": ranks, "cosine": cosines}))
    return pd.concat(tables, ignore_index=True)
