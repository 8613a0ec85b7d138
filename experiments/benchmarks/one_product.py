"""A backbone of one matrix product, so that everything around a backbone is what takes the time."""

from typing import Any

import torch
from torch import Tensor, nn

from src.models.backbones.base import Backbone


class OneProduct(Backbone):
    """Tokens of `width` values, one for each pixel of a small image.

    Args:
        name: of the backbone.
        model_name: of the architecture.
        width: of the activations.
        seed: of the weights.
        **options: of `Backbone`.
    """

    def __init__(self, name: str, model_name: str, width: int = 64, seed: int = 0, **options: Any) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = nn.Conv2d(3, width, kernel_size=1)
        super().__init__(
            name, model, [], model_name, weights=f"random, seed {seed}", description="one random product", **options
        )

    def _body(self, images: Tensor) -> Tensor:
        return self.model(images)

    def _head(self, native: Tensor) -> Tensor:
        return native.mean(dim=(2, 3))
