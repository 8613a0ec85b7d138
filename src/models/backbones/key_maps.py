"""The keys of published weights files in those of the models that we load them into, one function a family.

What is not of the image tower (text towers, heads of the training) is left out by name, so that anything else that a
file holds is still refused. A file of another family passes unchanged, and is refused by its keys.
"""

import re
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = dict[str, Tensor]

# Buffers that the models compute: kept in files of some versions, and the same in all.
_COUNTED = ("position_ids", "relative_position_index", "attn_mask")
_OPENAI_SIZES = ("input_resolution", "context_length", "vocab_size")
# Of transformers' CLIP (`pre_layrnorm` is its spelling) in open_clip's; in this order.
_CLIP_NAMES = {
    "encoder.layers.": "transformer.resblocks.",
    "self_attn.": "attn.",
    "layer_norm": "ln_",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "embeddings.class_embedding": "class_embedding",
    "embeddings.patch_embedding": "conv1",
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.token_embedding": "token_embedding",
    "pre_layrnorm": "ln_pre",
    "post_layernorm": "ln_post",
    "final_ln_": "ln_final",
}


def conch_tower_keys(weights: Mapping[str, Tensor], grid: tuple[int, int]) -> Weights:
    """Returns the keys of `ConchTower` for those of MahmoodLab's files of CONCH v1 and v1.5.

    v1: `visual.` holds the image tower, whose features @ `proj_contrast` are the projection. v1.5: its pooling has no
    biases, and keys and values in one matrix; its position embeddings are fitted to the grid.

    Args:
        weights: of the file.
        grid: rows and columns of patches at the model's input size.
    """
    own = _below(weights, "visual.", others=("text.", "text_decoder.", "logit_scale"))
    own = _without(own, ("attn_pool_caption.", "ln_caption."))
    pool = "attn_pool_contrast."
    if (projection := own.pop("proj_contrast", None)) is not None:
        own["projection_head.weight"] = projection.T
    if f"{pool}to_kv.weight" in own:
        query, out = own.pop(f"{pool}to_q.weight"), own.pop(f"{pool}to_out.weight")
        key, value = own.pop(f"{pool}to_kv.weight").chunk(2)
        names = ("q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight")
        own |= {f"{pool}attn.{name}": one for name, one in zip(names, (query, key, value, out), strict=True)}
        own[f"{pool}attn.in_proj_bias"] = query.new_zeros(3 * len(query))
        own[f"{pool}attn.out_proj.bias"] = query.new_zeros(len(query))
        if "trunk.pos_embed" in own:
            own["trunk.pos_embed"] = _fit_positions(own["trunk.pos_embed"], grid)
    return own


def torchvision_keys(weights: Mapping[str, Tensor]) -> Weights:
    """Returns torchvision's keys, for those of MedCLIP's ResNet-50 too, whose `fc` is the projection."""
    own = _without(weights, ("text_model.", "logit_scale"))
    if not any(key.startswith("vision_model.model.") for key in own):
        return dict(weights)
    return _renamed(_only_below(own, "vision_model.model."), {"fc.weight": "projection_head.weight"})


def transformers_keys(weights: Mapping[str, Tensor]) -> Weights:
    """Returns transformers' keys, for those of MedCLIP's Swin too; without the indices that old files hold."""
    own = {key: value for key, value in weights.items() if not key.endswith(_COUNTED)}
    if "vision_model.projection_head.weight" not in own:
        return own
    own = _only_below(own, "vision_model.")
    return {key.removeprefix("model."): value for key, value in own.items()}


def open_clip_keys(weights: Mapping[str, Tensor]) -> Weights:
    """Returns open_clip's keys, for those of transformers' CLIP (PLIP) and of OpenAI's archives too."""
    own = {key: value for key, value in weights.items() if key not in _OPENAI_SIZES and not key.endswith(_COUNTED)}
    if "vision_model.embeddings.class_embedding" not in own:
        return own
    found: Weights = {}
    for tower, width in (("vision_model.", "visual."), ("text_model.", "")):
        part = _only_below(own, tower)
        for name in ("weight", "bias"):
            for key in [key for key in part if key.endswith(f"self_attn.q_proj.{name}")]:
                parts = [part.pop(key.replace("q_proj", f"{which}_proj")) for which in "qkv"]
                part[key.replace("self_attn.q_proj.", "attn.in_proj_")] = torch.cat(parts)
        for key, value in part.items():
            for old, new in _CLIP_NAMES.items():
                key = key.replace(old, new)
            found[width + key] = value
    found["visual.proj"], found["text_projection"] = own["visual_projection.weight"].T, own["text_projection.weight"].T
    others = ("vision_model.", "text_model.", "visual_projection.", "text_projection.")
    return found | _without(own, others)


def timm_keys(weights: Mapping[str, Tensor], model: Any) -> Weights:
    """Returns timm's keys for those of a file of timm's, or of one of these families, known by its keys.

    DINOv2's training, and so DinoBloom: `backbone.`, beside the heads of the training. PanDerm: `encoder.` of a CAE
    (Chen et al. 2022), whose other parts are left out. DermLIP's PanDerm: `visual.`. BiomedCLIP: `visual.trunk.` with a
    linear projection. Mammo-CLIP: `image_encoder.` in the keys of efficientnet_pytorch.

    Args:
        weights: of the file.
        model: timm's, whose own conversion (of position embeddings, for example) follows.
    """
    own = dict(weights)
    if "backbone.cls_token" in own:
        own = _below(own, "backbone.", others=("dino_head.", "ibot_head."))
    elif "encoder.cls_token" in own:
        own = _only_below(own, "encoder.")
    elif "visual.cls_token" in own:
        own = _below(own, "visual.", others=("text.", "logit_scale"))
    elif "visual.trunk.cls_token" in own:
        own = _below(own, "visual.", others=("text.", "logit_scale"))
        own = {key.removeprefix("trunk."): value for key, value in own.items()}
        own = _renamed(own, {"head.proj.weight": "projection_head.weight"})
    elif "image_encoder._conv_stem.weight" in own:
        own = _efficientnet_keys(_only_below(own, "image_encoder."), model)
    projection = own.pop("projection_head.weight", None)
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    own = dict(own) if convert is None else dict(convert(own, model))
    if projection is not None:
        own["projection_head.weight"] = projection
    return {key: value for key, value in own.items() if not _is_classifier(key, model)}


def _is_classifier(key: str, model: Any) -> bool:
    classifier = (getattr(model, "pretrained_cfg", None) or {}).get("classifier")
    names = [classifier] if isinstance(classifier, str) else classifier or []
    return not model.num_classes and key.startswith(tuple(f"{name}." for name in names))


def _efficientnet_keys(weights: Mapping[str, Tensor], model: Any) -> Weights:
    """Returns timm's keys for those of efficientnet_pytorch, which counts blocks through and numbers norms from 0.

    Blocks without expansion have one convolution and one norm less, and timm counts the rest on from there.
    """
    places = [f"blocks.{stage}.{index}." for stage, blocks in enumerate(model.blocks) for index in range(len(blocks))]
    outer = {"_conv_stem.": "conv_stem.", "_bn0.": "bn1.", "_conv_head.": "conv_head.", "_bn1.": "bn2."}
    common = {"_depthwise_conv.": "conv_dw.", "_se_reduce.": "se.conv_reduce.", "_se_expand.": "se.conv_expand."}
    expanded = {"_expand_conv.": "conv_pw.", "_bn0.": "bn1.", "_bn1.": "bn2.", "_project_conv.": "conv_pwl."}
    expanded |= common | {"_bn2.": "bn3."}
    plain = common | {"_bn1.": "bn1.", "_project_conv.": "conv_pw.", "_bn2.": "bn2."}
    found: Weights = {}
    for key, value in weights.items():
        match = re.fullmatch(r"_blocks\.(\d+)\.(_\w+\.)(.+)", key)
        if match is None or int(match[1]) >= len(places):
            head, _, tail = key.partition(".")
            found[outer.get(f"{head}.", f"{head}.") + tail] = value
        else:
            names = expanded if f"_blocks.{match[1]}._expand_conv.weight" in weights else plain
            found[places[int(match[1])] + names.get(match[2], match[2]) + match[3]] = value
    return found


def _only_below(weights: Mapping[str, Tensor], prefix: str) -> Weights:
    return {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}


def _renamed(weights: Mapping[str, Tensor], names: Mapping[str, str]) -> Weights:
    return {names.get(key, key): value for key, value in weights.items()}


def _below(weights: Mapping[str, Tensor], prefix: str, others: Iterable[str]) -> Weights:
    """Returns what lies below a prefix, without it, and all that lies elsewhere; `others`, named, are left out."""
    if not any(key.startswith(prefix) for key in weights):
        return dict(weights)
    return {key.removeprefix(prefix): value for key, value in _without(weights, others).items()}


def _without(weights: Mapping[str, Tensor], prefixes: Iterable[str]) -> Weights:
    return {key: value for key, value in weights.items() if not key.startswith(tuple(prefixes))}


def _fit_positions(positions: Tensor, grid: tuple[int, int]) -> Tensor:
    """Returns position embeddings [1, 1 + n, d] of a square grid for another grid.

    As DINO and TITAN do in their forward passes: bicubic by the ratio of the sides, to which they add a tenth of a
    patch against rounding; it also shifts what is sampled a little, which is why it is done here too.
    """
    side = round((positions.shape[1] - 1) ** 0.5)
    if (side, side) == tuple(grid):
        return positions
    square = positions[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    scale = ((grid[0] + 0.1) / side, (grid[1] + 0.1) / side)
    fitted = F.interpolate(square.float(), scale_factor=scale, mode="bicubic")
    return torch.cat([positions[:, :1], fitted.flatten(2).transpose(1, 2).to(positions.dtype)], dim=1)
