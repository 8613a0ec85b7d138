"""Any timm model as a backbone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from jaxtyping import Float
from timm.models import load_checkpoint
from torch import Tensor

from src.models.backbones.base import Backbone


class TimmBackbone(Backbone):
    """Activations of a timm model: its pooled output, or one block's output pooled over positions.

    Args:
        name: of the backbone.
        model_name: timm's name, or `hf-hub:<owner>/<model>`.
        checkpoint: a local weights file in timm's key names; loaded strictly.
        pretrained: fetch the weights that timm or the hub has for the model. With neither, weights are random, fixed
            by `seed`.
        layer: index of a block in timm's `forward_intermediates`; the model's own pooled output when None.
        pooling: `avg` over positions or the class token `cls`; only with `layer`.
        model_args: further arguments of `timm.create_model`.
        seed: of random weights.
        **preprocessing: `image_size`, `mean`, `std`, `interpolation` of `Backbone`.

    Raises:
        FileNotFoundError: when the checkpoint does not exist.
        ValueError: when the weights cannot be fetched, or `cls` is asked of a model without class token.
    """

    def __init__(
        self,
        name: str,
        model_name: str,
        checkpoint: str | None = None,
        pretrained: bool = False,
        layer: int | None = None,
        pooling: Literal["avg", "cls"] = "avg",
        model_args: Mapping[str, Any] | None = None,
        seed: int = 0,
        image_size: int = 224,
        **preprocessing: Any,
    ) -> None:
        super().__init__(name, image_size, **preprocessing)
        if checkpoint is not None and not Path(checkpoint).is_file():
            raise FileNotFoundError(
                f"Expected the weights of {model_name} at {checkpoint}, found none. Download them (gated models need "
                "their licence accepted) and give backbone.checkpoint=<file>."
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                self.model: Any = timm.create_model(
                    model_name, pretrained=pretrained, num_classes=0, **(model_args or {})
                )
            except (OSError, RuntimeError) as error:
                raise ValueError(
                    f"Expected timm to make {model_name} (pretrained={pretrained}), got: {error}. Without a network "
                    "give backbone.pretrained=false backbone.checkpoint=<file>."
                ) from error
        if checkpoint is not None:
            load_checkpoint(self.model, checkpoint, strict=True)
        if pooling == "cls" and not getattr(self.model, "num_prefix_tokens", 0):
            raise ValueError(f"Expected a model with class token for backbone.pooling=cls, got {model_name}: use avg.")
        self.description = _describe(model_name, checkpoint, pretrained, seed)
        if layer is not None:
            self.description += f", layer {layer}, pooled by {pooling}"
            self.layer_name = str(layer if layer >= 0 else len(self.model.feature_info) + layer)
        self.layer, self.pooling = layer, pooling
        self.eval().requires_grad_(False)
        with torch.inference_mode():
            self.d_in = self(torch.zeros(1, 3, self.image_size, self.image_size)).shape[1]

    def forward(self, images: Float[Tensor, "batch 3 image_size image_size"]) -> Float[Tensor, "batch d_in"]:
        """Returns activations [batch, d_in]."""
        if self.layer is None:
            return self.model(images)
        options = {"return_prefix_tokens": True} if self.pooling == "cls" else {}
        (block,) = self.model.forward_intermediates(
            images, indices=[self.layer], intermediates_only=True, stop_early=True, output_fmt="NCHW", **options
        )
        return block[1][:, 0] if self.pooling == "cls" else block.mean(dim=(2, 3))


def _describe(model_name: str, checkpoint: str | None, pretrained: bool, seed: int) -> str:
    if checkpoint is not None:
        return f"{model_name} with the weights in {Path(checkpoint).name}"  # its folder may change
    return f"{model_name}, published weights" if pretrained else f"{model_name} with random weights (seed {seed})"
