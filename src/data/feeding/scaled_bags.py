"""What brings bags to one scale, so that one learning rate and one initialisation serve every MIL model."""

from collections.abc import Iterable

import torch

from src.data.feeding.bags import BagReader

_SILENT = "Expected train bags with values other than 0, got none: a model could learn nothing."


def activation_scale(read: BagReader, item_ids: Iterable[str]) -> torch.Tensor:
    """Returns the factor that brings the values of all given slides to root mean square 1: 0-d.

    For activations: one number for all features, so that their geometry stays as it is.

    Args:
        read: gives the bag of a slide.
        item_ids: the slides to measure: the train slides of a fold.

    Raises:
        ValueError: when every value is 0.
    """
    total, n_values = 0.0, 0
    for item_id in item_ids:
        bag = read(item_id)
        total += float(bag.square().sum(dtype=torch.float64))
        n_values += bag.numel()
    if total == 0:
        raise ValueError(_SILENT)
    return torch.tensor((n_values / total) ** 0.5)


def latent_scale(read: BagReader, item_ids: Iterable[str]) -> torch.Tensor:
    """Returns what brings each neuron to root mean square 1 over the patches where it is active: [n_neurons].

    Zeros stay zeros. A neuron has a scale of its own, or a few strong ones decide it for all others, whose values then
    are too small to learn from; and patches where it is silent do not count, or the rarer a neuron, the larger what is
    left of it: latents of which 5 % are active came out at four where they are, and a model fitted its train slides
    before the end of the first epoch. A neuron that is silent on the given slides stays as it is.

    Args:
        read: gives the latents [n_patches, n_neurons] of a slide.
        item_ids: the slides to measure: the train slides of a fold.

    Raises:
        ValueError: when every value is 0.
    """
    squares, n_active = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.int64)
    for item_id in item_ids:
        bag = read(item_id)
        squares = squares + bag.double().square().sum(0)
        n_active = n_active + (bag != 0).sum(0)
    if not bool(n_active.any()):
        raise ValueError(_SILENT)
    return torch.where(n_active > 0, (n_active / squares).sqrt(), 1.0).float()
