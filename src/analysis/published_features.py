"""Our sums in the form that other systems publish."""

import numpy as np

from src.analysis.class_statistics import ClassStatistics, class_scores, rank_neurons_for_classes
from src.analysis.label_entropy import published_entropy
from src.analysis.latent_sums import NeuronSums
from src.analysis.top_items import TopItems
from src.stores.feature_data import FeatureData


def describe_features(
    sums: NeuronSums,
    top: TopItems,
    labels: np.ndarray,
    ignore_label: int | None = None,
    counts: np.ndarray | None = None,
) -> FeatureData:
    """Returns the statistics of PatchSAE's and CytoSAE's `compute_sae_feature_data`.

    Args:
        sums: of neurons over items.
        top: the top items by their mean.
        labels: [n_items] int64 of the items, from 0; without any label the label indices are 0 and mean nothing.
        ignore_label: a label that entropy leaves out.
        counts: of classes or patients.
    """
    lists = np.maximum(top.positions, 0)  # 0 fills lists up
    label_indices = labels[lists]
    with np.errstate(invalid="ignore"):  # NaN of neurons that never fire, as published
        mean_acts = sums.item_means / sums.active_items
    return FeatureData(
        indices=lists,
        values=top.values,
        label_indices=label_indices,
        mean_acts=mean_acts.astype(np.float32),
        sparsity=(sums.active_items / sums.n_items).astype(np.float32),
        entropy=published_entropy(top.values, label_indices, ignore_label).astype(np.float32),
        counts=counts,
    )


def rank_concepts(
    sums: NeuronSums, statistics: ClassStatistics | None
) -> dict[int | str, tuple[np.ndarray, np.ndarray]]:
    """Returns Mammo-SAE's rankings: neuron ids, best first, and their importance, by class number and for `all` items.

    Importance is the absolute mean over the items of the item's mean.
    """
    overall = np.abs(sums.item_means / sums.n_items)
    order = np.argsort(-overall, kind="stable")
    found: dict[int | str, tuple[np.ndarray, np.ndarray]] = {"all": (order, overall[order])}
    if statistics is not None:
        ranked, scores = rank_neurons_for_classes(statistics, "mean_abs"), class_scores(statistics, "mean_abs")
        found |= {label: (ids, scores[label, ids]) for label, ids in enumerate(ranked)}
    return found
