"""Whether the items that a neuron fires in most are of one label."""

from dataclasses import dataclass

import numpy as np
from scipy.special import entr

_LEAST_ENTRIES = 10


@dataclass(frozen=True)
class LabelMass:
    """How the values of top items spread over labels.

    Attributes:
        entropy: [n_latents] float64, natural logarithm: 0 when all top items are of one label; NaN without any.
        purity: [n_latents] float64, the share of the values that belongs to the strongest label; NaN without any.
        top_label: [n_latents] int64, that label; -1 without any.
    """

    entropy: np.ndarray
    purity: np.ndarray
    top_label: np.ndarray


def label_mass(values: np.ndarray, labels: np.ndarray, n_labels: int, ignore_label: int | None = None) -> LabelMass:
    """Weighs the labels of each neuron's top items by their values.

    With p the share of a label in the sum of the values, entropy is -sum p ln p: PatchSAE's label entropy (H. Lim et
    al., arXiv 2412.05276). Never active neurons have NaN, as in its published tables.

    Args:
        values: [n_latents, n] of the top items, 0 where there is none.
        labels: [n_latents, n] of the top items, -1 where there is none.
        n_labels: their number.
        ignore_label: a label whose items are left out.
    """
    counted = (labels >= 0) & (values > 0)
    if ignore_label is not None:
        counted &= labels != ignore_label
    mass = np.zeros((len(values), n_labels))
    neurons = np.broadcast_to(np.arange(len(values))[:, None], values.shape)
    np.add.at(mass, (neurons[counted], labels[counted]), values[counted].astype(np.float64))
    total = mass.sum(axis=1)
    with np.errstate(invalid="ignore"):  # a neuron without items
        shares = mass / total[:, None]
    top_label = np.where(total > 0, mass.argmax(axis=1), -1)
    return LabelMass(entr(shares).sum(axis=1), shares.max(axis=1), top_label)


def published_entropy(values: np.ndarray, labels: np.ndarray, ignore_label: int | None = None) -> np.ndarray:
    """Returns label entropy with the conventions of PatchSAE's and CytoSAE's `top_entropy.pt`: [n_latents] float64.

    As `label_mass`, but -1 where leaving out `ignore_label` leaves fewer than 10 items, and items of value 0, which
    fill the lists of neurons that fire in few images, count among them. (Their 1e-9 inside of the logarithm changes
    no entropy by more than 1e-8 and is left out.)

    Args:
        values: [n_latents, n].
        labels: [n_latents, n], from 0.
        ignore_label: see above.
    """
    found = label_mass(values, labels, int(labels.max(initial=0)) + 1, ignore_label).entropy
    if ignore_label is None:
        return found
    return np.where((labels != ignore_label).sum(axis=1) < _LEAST_ENTRIES, -1.0, found)
