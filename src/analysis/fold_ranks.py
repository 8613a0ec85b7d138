"""How high the neurons that one fold chooses stand in the rankings of the others."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from src.analysis.stability import match_neurons


def rank_over_folds(
    rankings: Mapping[str, Sequence[int]], n_chosen: int, atoms: Mapping[str, np.ndarray] | None = None
) -> pd.DataFrame:
    """Follows the neurons that some fold ranks first through the rankings of all folds.

    Where each fold has its own SAE, a neuron is followed by its atom: what a fold chooses is named by the nearest atom
    of the first fold, and found again in every fold as the neuron nearest to that one.

    Args:
        rankings: of each fold its neurons, the best first.
        n_chosen: how many of them a fold chooses.
        atoms: of each fold, [n_latents, d_in]; None where all folds have one SAE.

    Returns:
        neuron (in the first fold), fold, neuron_id (in the fold), cosine (of the atoms, 1 with one SAE), rank (from 1
        on; NaN when the fold does not rank it) and is_chosen.
    """
    first = next(iter(rankings))

    def find(start: str, end: str, neuron_ids: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        if atoms is None or start == end:
            return np.asarray(neuron_ids), np.ones(len(neuron_ids))
        return match_neurons(atoms[start], atoms[end], neuron_ids)

    chosen = {fold: list(ranking)[:n_chosen] for fold, ranking in rankings.items()}
    followed = sorted({int(one) for fold, ids in chosen.items() for one in find(fold, first, ids)[0]})
    tables = []
    for fold, ranking in rankings.items():
        ranks = {neuron_id: rank for rank, neuron_id in enumerate(ranking, start=1)}
        neuron_ids, cosines = find(first, fold, followed)
        columns = {"neuron": followed, "fold": fold, "neuron_id": neuron_ids, "cosine": cosines}
        table = pd.DataFrame(columns)
        table["rank"] = [ranks.get(neuron_id, np.nan) for neuron_id in table["neuron_id"].tolist()]
        tables.append(table.assign(is_chosen=table["neuron_id"].isin(chosen[fold])))
    return pd.concat(tables, ignore_index=True)
