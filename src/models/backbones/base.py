"""The contract of every backbone: RGB patches in, one activation vector a patch out."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

Interpolation = Literal["bilinear", "bicubic"]


class Backbone(nn.Module, ABC):
    """A frozen vision model and the preprocessing that belongs to it.

    Attributes:
        name: enters the names of feature folders.
        description: what the weights are, for the report.
        d_in: width of the activations it gives, which is the SAE's input width.

    Args:
        name: see above.
        image_size: edge in pixels that patches are resized to.
        mean: per channel, of images in 0..1.
        std: per channel.
        interpolation: of the resizing; features of one encoder differ between the two.
    """

    d_in: int
    description: str

    def __init__(
        self,
        name: str,
        image_size: int,
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
        interpolation: Interpolation = "bicubic",
    ) -> None:
        super().__init__()
        self.name = name
        self.image_size = image_size
        self.mean, self.std = list(mean), list(std)
        self.interpolation: Interpolation = interpolation

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Returns activations [batch, d_in] of preprocessed images [batch, 3, image_size, image_size]."""

    def preprocess(self, patches: Tensor) -> Tensor:
        """Returns uint8 patches [batch, 3, H, W] resized (antialiased) and normalised."""
        if patches.shape[-2:] != (self.image_size, self.image_size):
            mode = InterpolationMode(self.interpolation)
            patches = F.resize(patches, [self.image_size, self.image_size], mode, antialias=True)
        return F.normalize(patches.float() / 255, self.mean, self.std)

    @torch.inference_mode()
    def embed(self, patches: Tensor) -> Tensor:
        """Returns float32 activations [batch, d_in] of uint8 patches [batch, 3, H, W], on the model's device."""
        device = next(self.parameters()).device
        return self(self.preprocess(patches.to(device))).float()

    @property
    def transform(self) -> str:
        """The preprocessing in words, written beside the features: the same encoder at another size differs."""
        return f"resize {self.image_size} {self.interpolation}, mean {self.mean}, std {self.std}"
