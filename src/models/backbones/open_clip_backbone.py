"""The image tower of any open_clip model as a backbone."""

from pathlib import Path
from typing import Any

import open_clip
import torch
from jaxtyping import Float
from torch import Tensor

from src.models.backbones.base import Backbone


class OpenClipBackbone(Backbone):
    """Activations of an open_clip model's image tower.

    Args:
        name: of the backbone.
        model_name: open_clip's architecture, or `hf-hub:<owner>/<model>`.
        pretrained: a local checkpoint or open_clip's tag of published weights; random weights when None.
        project: give the embedding in the space shared with text; otherwise the pooled tower output before it.
        seed: of random weights.
        **preprocessing: `image_size`, `mean`, `std`, `interpolation` of `Backbone`.

    Raises:
        ValueError: when open_clip cannot make the model or its weights cannot be had.
    """

    def __init__(
        self,
        name: str,
        model_name: str,
        pretrained: str | None = None,
        project: bool = True,
        seed: int = 0,
        image_size: int = 224,
        **preprocessing: Any,
    ) -> None:
        super().__init__(name, image_size, **preprocessing)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                self.model: Any = open_clip.create_model(model_name, pretrained=pretrained).visual
            except (OSError, RuntimeError) as error:
                raise ValueError(
                    f"Expected open_clip to make {model_name} with weights {pretrained}, got: {error}. Without a "
                    "network, and for gated models, download them and give backbone.pretrained=<file>."
                ) from error
        if not project:
            self.model.proj = None
        is_file = pretrained is not None and Path(pretrained).is_file()
        weights = "random weights" if pretrained is None else f"the weights {'in ' if is_file else ''}{pretrained}"
        self.description = f"{model_name} with {weights}" + (f" (seed {seed})" if pretrained is None else "")
        self.eval().requires_grad_(False)
        with torch.inference_mode():
            self.d_in = self(torch.zeros(1, 3, self.image_size, self.image_size)).shape[1]

    def forward(self, images: Float[Tensor, "batch 3 image_size image_size"]) -> Float[Tensor, "batch d_in"]:
        """Returns activations [batch, d_in]."""
        return self.model(images)
