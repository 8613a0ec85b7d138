"""What is done to images before a backbone sees them."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from src.models.backbones.spec import (
    CROP_PCT,
    IMAGE_SIZE,
    INTENSITY,
    INTERPOLATION,
    MEAN,
    RESIZE,
    STD,
    describe_transform,
    size_pair,
)

Interpolation = Literal["bilinear", "bicubic"]
Resize = Literal["stretch", "crop", "pad"]
Intensity = Literal["full", "min_max"]
# A blank image stays blank: one grey level of contrast in 255.
_LEAST_STD = 1 / 255


class Window(NamedTuple):
    """A part of an image, as shares of its height and width: the whole image is (0, 0, 1, 1).

    A padded image is seen with what lies around it: then top and left are below 0, or bottom and right above 1.
    """

    top: float
    left: float
    bottom: float
    right: float


class Preprocessing:
    """Resizes uint8 images, and normalises them.

    Attributes:
        size: height and width of what comes out, in pixels.

    Args:
        image_size: the edge of a square, or [height, width].
        mean: per channel, of images in 0..1.
        std: per channel.
        interpolation: of the resizing; features of one encoder differ between the two.
        resize: `stretch` to the size, whatever the image's aspect; or `crop`: keep the aspect, make the image as small
            as covers the size divided by `crop_pct`, and cut the size from its centre, as timm's and torchvision's
            evaluation transforms do (of a square: the shorter side becomes floor(size / crop_pct)); or `pad`: put
            the image in the middle of a black square, at least as large as the size, and stretch that, as MedCLIP's
            feature extractor does (Wang et al. 2022, "MedCLIP"; medclip/dataset.py). It also makes images grey, which
            we leave: X-rays are.
        crop_pct: share of the shorter side that is kept; only with `crop`. 0.875 = 224/256 is ImageNet's custom.
        normalize_each: instead of by `mean` and `std`, shift and scale each image's channels by its own. Random
            filters otherwise see little but stain and brightness (on contrast normalisation before random filters:
            Coates, Lee and Ng 2011, "An analysis of single-layer networks in unsupervised feature learning").
        intensity: what becomes 0 and 1 before `mean` and `std`: of `full` the values 0 and 255; of `min_max` the least
            and the largest value of each resized image, over all channels, as Mammo-CLIP's reader does (Ghosh et al.
            2024, "Mammo-CLIP"; Datasets/dataset_concepts.py). A blank image becomes 0, where that gives NaN.

    Raises:
        ValueError: when `resize`, `intensity` or `interpolation` is another word, or the size is not one, or no square
            to pad to.
    """

    def __init__(
        self,
        image_size: int | Sequence[int] = IMAGE_SIZE,
        mean: Sequence[float] = MEAN,
        std: Sequence[float] = STD,
        interpolation: Interpolation = INTERPOLATION,
        resize: Resize = RESIZE,
        crop_pct: float = CROP_PCT,
        normalize_each: bool = False,
        intensity: Intensity = INTENSITY,
    ) -> None:
        if resize not in get_args(Resize):
            raise ValueError(f"Expected backbone.resize to be one of {', '.join(get_args(Resize))}, got {resize}.")
        if intensity not in get_args(Intensity):
            raise ValueError(f"Expected backbone.intensity to be full or min_max, got {intensity}.")
        self.size = size_pair(image_size)
        if resize == "pad" and self.size[0] != self.size[1]:
            raise ValueError(
                f"Expected a square as backbone.image_size for backbone.resize=pad, got {list(self.size)}."
            )
        self._mean, self._std, self._normalize_each = list(mean), list(std), normalize_each
        self._mode, self._resize, self._crop_pct = InterpolationMode(interpolation), resize, crop_pct
        self._intensity = intensity

    def resize(self, images: UInt8[Tensor, "*batch 3 height width"]) -> UInt8[Tensor, "*batch 3 h w"]:
        """Returns images [..., 3, H, W] antialiased at the size, uint8.

        Meant for the CPU, where torchvision keeps to uint8 and is fastest on images that lie row by row with their
        channels together, as decoders give them.
        """
        height, width = images.shape[-2:]
        if self._resize == "pad":
            images = F.pad(images, list(_square_padding(height, width, self.size[0])))
        if self._resize != "crop":
            if images.shape[-2:] == self.size:
                return images
            return F.resize(images, list(self.size), self._mode, antialias=True)
        covering = list(_covering_size(height, width, self.size, self._crop_pct))
        return F.center_crop(F.resize(images, covering, self._mode, antialias=True), list(self.size))

    def normalize(self, images: UInt8[Tensor, "batch 3 h w"]) -> Float[Tensor, "batch 3 h w"]:
        """Returns images [batch, 3, h, w] as float32, shifted and scaled."""
        scaled = images.float() / 255 if self._intensity == "full" else _from_least_to_largest(images.float())
        if not self._normalize_each:
            return F.normalize(scaled, self._mean, self._std)
        std, mean = torch.std_mean(scaled, dim=(2, 3), keepdim=True)
        return (scaled - mean) / (std + _LEAST_STD)

    def __str__(self) -> str:
        """The preprocessing in words."""
        return describe_transform(
            self.size,
            self._mode.value,
            self._mean,
            self._std,
            self._normalize_each,
            self._resize,
            self._crop_pct,
            self._intensity,
        )


def seen_window(
    height: int, width: int, input_size: tuple[int, int], resize: str = RESIZE, crop_pct: float = CROP_PCT
) -> Window:
    """Returns which part of an image a model is given: all of it, what its centre crop leaves, or more.

    Args:
        height: of the image as it is stored, in pixels.
        width: of it.
        input_size: height and width of the model's input.
        resize: `stretch`, `crop` or `pad`, see `Preprocessing`.
        crop_pct: see `Preprocessing`.
    """
    if resize == "stretch":
        return Window(0.0, 0.0, 1.0, 1.0)
    if resize == "pad":
        left, top, right, bottom = _square_padding(height, width, input_size[0])
        return Window(-top / height, -left / width, 1 + bottom / height, 1 + right / width)
    covering = _covering_size(height, width, input_size, crop_pct)
    # Rounded as torchvision's center_crop does.
    top, left = (round((side - edge) / 2) for side, edge in zip(covering, input_size, strict=True))
    bottom, right = top + input_size[0], left + input_size[1]
    return Window(top / covering[0], left / covering[1], bottom / covering[0], right / covering[1])


def _square_padding(height: int, width: int, edge: int) -> tuple[int, int, int, int]:
    """Returns what to add on the left, top, right and bottom for a square of at least `edge`."""
    edge = max(edge, height, width)
    left, top = (edge - width) // 2, (edge - height) // 2
    return left, top, edge - width - left, edge - height - top


def _from_least_to_largest(images: Tensor) -> Tensor:
    """Returns images [batch, 3, h, w] of which each reaches from 0 to 1; 0 where all its values are the same."""
    least, largest = (reduce(images, dim=(1, 2, 3), keepdim=True) for reduce in (torch.amin, torch.amax))
    return (images - least) / (largest - least).clamp(min=1)


def _covering_size(height: int, width: int, size: tuple[int, int], crop_pct: float) -> tuple[int, int]:
    """Returns height and width to resize an image to, before the centre crop."""
    least = [math.floor(edge / crop_pct) for edge in size]
    scale = max(least[0] / height, least[1] / width)
    return max(least[0], int(height * scale)), max(least[1], int(width * scale))
