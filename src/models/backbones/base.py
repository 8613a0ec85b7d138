"""The contract of every backbone: RGB patches in, one activation vector a patch out."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from src.models.backbones.spec import INTERPOLATION, MEAN, STD, describe_transform

Interpolation = Literal["bilinear", "bicubic"]
# A blank image stays blank: one grey level of contrast in 255.
_LEAST_STD = 1 / 255


class Backbone(nn.Module, ABC):
    """A frozen vision model and the preprocessing that belongs to it.

    Attributes:
        name: enters the names of feature folders.
        description: what the weights are, for the report.
        layer_name: index of the block that activations come from, from 0; `output` of the model's own.
        d_in: width of the activations it gives, which is the SAE's input width.

    Args:
        name: see above.
        image_size: edge in pixels that patches are resized to.
        mean: per channel, of images in 0..1.
        std: per channel.
        interpolation: of the resizing; features of one encoder differ between the two.
        normalize_each: instead of by `mean` and `std`, shift and scale each image's channels by its own. Random
            filters otherwise see little but stain and brightness (on contrast normalisation before random filters:
            Coates, Lee and Ng 2011, "An analysis of single-layer networks in unsupervised feature learning").
    """

    d_in: int
    description: str
    layer_name: str = "output"

    def __init__(
        self,
        name: str,
        image_size: int,
        mean: Sequence[float] = MEAN,
        std: Sequence[float] = STD,
        interpolation: Interpolation = INTERPOLATION,
        normalize_each: bool = False,
    ) -> None:
        super().__init__()
        self.name = name
        self.image_size = image_size
        self.mean, self.std = list(mean), list(std)
        self.interpolation: Interpolation = interpolation
        self.normalize_each = normalize_each

    @abstractmethod
    def forward(self, images: Float[Tensor, "batch 3 image_size image_size"]) -> Float[Tensor, "batch d_in"]:
        """Returns activations [batch, d_in] of preprocessed images [batch, 3, image_size, image_size]."""

    def preprocess(
        self, patches: UInt8[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch 3 {self.image_size} {self.image_size}"]:
        """Returns uint8 patches [batch, 3, H, W] resized (antialiased) and normalised."""
        if patches.shape[-2:] != (self.image_size, self.image_size):
            mode = InterpolationMode(self.interpolation)
            patches = F.resize(patches, [self.image_size, self.image_size], mode, antialias=True)
        images = patches.float() / 255
        if not self.normalize_each:
            return F.normalize(images, self.mean, self.std)
        std, mean = torch.std_mean(images, dim=(2, 3), keepdim=True)
        return (images - mean) / (std + _LEAST_STD)

    @torch.inference_mode()
    def embed(self, patches: UInt8[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch {self.d_in}"]:
        """Returns float32 activations [batch, d_in] of uint8 patches [batch, 3, H, W], on the model's device."""
        device = next(self.parameters()).device
        return self(self.preprocess(patches.to(device))).float()

    @property
    def transform(self) -> str:
        """The preprocessing in words."""
        return describe_transform(self.image_size, self.interpolation, self.mean, self.std, self.normalize_each)
