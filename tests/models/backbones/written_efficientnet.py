"""EfficientNet-B5 written from its paper (Tan and Le 2019) and efficientnet_pytorch's keys, to compare with."""

import math

import torch.nn.functional as F

# Repeats, kernel and stride of the stages of B0; repeats grow by 2.2 in B5.
_STAGES = ((1, 3, 1), (2, 3, 2), (2, 5, 2), (3, 3, 2), (3, 5, 1), (4, 5, 2), (1, 3, 1))


def efficientnet_map(x, w, padded_for):
    """Returns the last map; `padded_for` is the edge for which paddings are computed, that of the maps when None."""
    edge = padded_for

    def conv(x, name, stride=1, groups=1):
        nonlocal edge
        kernel, around = w[f"{name}.weight"].shape[-1], []
        for side in (x.shape[-1], x.shape[-2]):
            of = side if padded_for is None else edge
            total = max((math.ceil(of / stride) - 1) * stride + kernel - of, 0)
            around += [total // 2, total - total // 2]
        edge = None if edge is None else math.ceil(edge / stride)
        return F.conv2d(F.pad(x, around), w[f"{name}.weight"], w.get(f"{name}.bias"), stride, groups=groups)

    def norm(x, name):
        stats = (w[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *stats, eps=1e-3)

    x = F.silu(norm(conv(x, "_conv_stem", 2), "_bn0"))
    index = 0
    for repeats, _, stride in _STAGES:
        for repeat in range(math.ceil(2.2 * repeats)):
            at, shortcut = f"_blocks.{index}.", x
            if f"{at}_expand_conv.weight" in w:
                x = F.silu(norm(conv(x, f"{at}_expand_conv"), f"{at}_bn0"))
            x = conv(x, f"{at}_depthwise_conv", stride if repeat == 0 else 1, groups=x.shape[1])
            x = F.silu(norm(x, f"{at}_bn1"))
            gate = x.mean((2, 3), keepdim=True)
            for name, act in (("_se_reduce", F.silu), ("_se_expand", lambda v: v.sigmoid())):
                gate = act(F.conv2d(gate, w[f"{at}{name}.weight"], w[f"{at}{name}.bias"]))
            x = norm(conv(x * gate, f"{at}_project_conv"), f"{at}_bn2")
            x = x + shortcut if repeat else x
            index += 1
    return F.silu(norm(conv(x, "_conv_head"), "_bn1"))
