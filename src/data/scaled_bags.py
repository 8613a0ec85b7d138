"""Bags brought to one scale."""

from collections.abc import Iterable

import torch
from torch import Tensor

from src.data.bags import BagReader


def scaled_bags(read: BagReader, slide_ids: Iterable[str]) -> BagReader:
    """Returns a reader of bags divided by the root mean square of all values of the given slides.

    One number for all features, so zeros stay zeros and the geometry stays as it is; what changes is that one learning
    rate and one initialisation serve every encoder, latents included, whatever their units.

    Args:
        read: gives the bag of a slide.
        slide_ids: the slides to measure: the train slides of a fold.

    Raises:
        ValueError: when every value is 0.
    """
    total, n_values = 0.0, 0
    for slide_id in slide_ids:
        bag = read(slide_id)
        total += float(bag.square().sum(dtype=torch.float64))
        n_values += bag.numel()
    if total == 0:
        raise ValueError("Expected train bags with values other than 0, got none: a model could learn nothing.")
    factor = (n_values / total) ** 0.5

    def read_scaled(slide_id: str) -> Tensor:
        return read(slide_id) * factor

    return read_scaled
