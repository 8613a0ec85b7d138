"""The tables that say how neurons fire over a part of a data set."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pandas as pd

from src.analysis.class_statistics import ClassStatistics, class_scores, rank_neurons_for_classes
from src.analysis.item_latents import ItemLatents, gather_items
from src.analysis.label_entropy import LabelMass
from src.analysis.latent_sums import NeuronSums
from src.analysis.top_items import TopItems
from src.ops.sparse_latents import SparseLatents
from src.wording import Words


@dataclass(frozen=True)
class Recipe:
    """What the statistics count and normalise by.

    Attributes:
        top_by: what top items are the strongest by: `maximum` or `mean` over an item's rows.
        counts_rows: whether counts of a class are of rows, and not of items.
        divides_cases: whether the counts of a case are divided by its items (ours), or, as CytoSAE does, by the number
            of neurons, which makes cases of many images score higher.
    """

    top_by: str
    counts_rows: bool
    divides_cases: bool

    def counted(self, words: Words) -> str:
        """Says what is counted."""
        return words.rows if self.counts_rows else f"{words.items} with a {words.row}"


RECIPES = {
    "default": Recipe("maximum", counts_rows=False, divides_cases=True),
    "patchsae": Recipe("mean", counts_rows=True, divides_cases=True),
    "cytosae": Recipe("mean", counts_rows=True, divides_cases=False),
}


class Sums(Protocol):
    """What is added up over items."""

    def update(self, found: ItemLatents) -> None:
        """Adds items."""
        ...


def add_up(pieces: Iterable[tuple[np.ndarray, SparseLatents]], threshold: float, *sums: Sums) -> None:
    """Adds all items to all sums, in one pass.

    Args:
        pieces: rows as `LatentSource.read` yields them.
        threshold: counts are of what is above it.
        *sums: what to add to.
    """
    for found in gather_items(pieces, threshold):
        for one in sums:
            one.update(found)


def tabulate_neurons(sums: NeuronSums, mass: LabelMass | None = None, classes: Sequence[str] = ()) -> pd.DataFrame:
    """Returns a row a neuron.

    Args:
        sums: over all items.
        mass: how the labels of top items spread; None without labels.
        classes: names of the labels.

    Returns:
        `neuron_id`; `frequency`, the share of rows on which it is above 0; `item_frequency`, the share of items with
        such a row; `mean` over all rows, zeros included; `mean_active` over the rows on which it is above 0; `max`;
        `item_mean`, the mean over items of the item's mean; `n_rows` and `n_items` on which it is above 0;
        `label_entropy`, `class_purity` and `top_class` of its top items. Of a neuron that never fires `mean_active` and
        the last three are empty.
    """
    with np.errstate(invalid="ignore"):  # 0/0 of neurons that never fire
        mean_active = sums.sums / sums.active_rows
    columns = {
        "neuron_id": np.arange(len(sums.sums)),
        "frequency": sums.active_rows / max(sums.n_rows, 1),
        "mean": sums.sums / max(sums.n_rows, 1),
        "mean_active": mean_active,
        "max": sums.maxima,
        "item_frequency": sums.active_items / max(sums.n_items, 1),
        "item_mean": sums.item_means / max(sums.n_items, 1),
        "n_rows": sums.active_rows,
        "n_items": sums.active_items,
    }
    if mass is not None:
        names = np.array([*classes, ""], dtype=object)  # the last where there is no label
        columns |= {"label_entropy": mass.entropy, "class_purity": mass.purity, "top_class": names[mass.top_label]}
    return pd.DataFrame(columns)


def tabulate_top_items(top: TopItems, item_ids: Sequence[str], labels: Sequence[str | None]) -> pd.DataFrame:
    """Returns a row for each neuron and top item: `neuron_id`, `rank` (from 1), `item_id`, `value`, `row`, `label`."""
    neurons, ranks = np.nonzero(top.positions >= 0)
    positions = top.positions[neurons, ranks]
    return pd.DataFrame(
        {
            "neuron_id": neurons,
            "rank": ranks + 1,
            "item_id": np.array(item_ids, dtype=object)[positions],
            "value": top.values[neurons, ranks],
            "row": top.rows[neurons, ranks],
            "label": np.array(labels, dtype=object)[positions],
        }
    )


def tabulate_class_neurons(statistics: ClassStatistics, rule: str, n: int) -> pd.DataFrame:
    """Returns the `n` best neurons of each class: `class`, `rank` (from 1), `neuron_id`, `score`, `mean`, `count`.

    Raises:
        ValueError: as `rank_neurons_for_classes`.
    """
    ranked, scores = rank_neurons_for_classes(statistics, rule)[:, :n], class_scores(statistics, rule)
    labels, ranks = np.indices(ranked.shape).reshape(2, -1)
    neuron_ids = ranked.reshape(-1)
    return pd.DataFrame(
        {
            "class": np.array(statistics.classes, dtype=object)[labels],
            "rank": ranks + 1,
            "neuron_id": neuron_ids,
            "score": scores[labels, neuron_ids],
            "mean": statistics.means[labels, neuron_ids],
            "count": statistics.counts[labels, neuron_ids],
        }
    )
