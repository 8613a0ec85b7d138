"""Sizes of Matryoshka groups as the fractions that our SAE takes."""

import math
from collections.abc import Sequence


def fractions_of(sizes: Sequence[int]) -> list[float]:
    """Returns fractions that, times the number of neurons and cut down to whole ones, give these sizes again."""
    n_latents = sum(sizes)
    fractions = [size / n_latents for size in sizes]
    # A quotient that was rounded down would lose a neuron.
    return [
        one if int(one * n_latents) == size else math.nextafter(one, 1)
        for one, size in zip(fractions, sizes, strict=True)
    ]
