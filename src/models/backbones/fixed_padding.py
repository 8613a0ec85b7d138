"""Padding of "same" convolutions that was computed once, for one input size, and kept for images of any size."""

import math
from typing import Any

import torch.nn.functional as F
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn


class FixedPaddingConv2d(nn.Conv2d):
    """A convolution with its own padding before it; `around` is left, right, top, bottom."""

    around: tuple[int, int, int, int]

    def forward(self, x: Tensor) -> Tensor:
        """Returns the convolution of the padded map [batch, d, rows, columns]."""
        return F.conv2d(F.pad(x, self.around), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def fix_padding(model: nn.Module, edge: int) -> None:
    """Gives timm's "same" convolutions the padding that TensorFlow's rule asks for at one input size.

    timm computes it anew for every image; efficientnet_pytorch (and with it Mammo-CLIP) once, for the size at which the
    architecture was published (456 of B5), also where images are of another: 1520 x 912 pixels are padded differently
    before one of its strided convolutions, by a pixel.

    Args:
        model: changed in place; its modules run in the order in which they are registered.
        edge: of the square input that the padding is for.
    """
    convolutions: list[Any] = [module for module in model.modules() if isinstance(module, Conv2dSame)]
    for convolution in convolutions:  # in timm, those that shrink the map; all others keep its size
        kernel, stride = convolution.kernel_size[0], convolution.stride[0]
        out = math.ceil(edge / stride)
        total = max((out - 1) * stride + kernel - edge, 0)
        before, after = total // 2, total - total // 2
        convolution.__class__ = FixedPaddingConv2d
        convolution.around = (before, after, before, after)
        edge = out
