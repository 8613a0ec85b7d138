"""Any classifier of torchvision as a backbone, without its last linear layer."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.swin_transformer import SwinTransformer

from src.models.backbones.base import Backbone
from src.models.backbones.key_maps import torchvision_keys
from src.models.backbones.published import place_weights, require_checkpoint
from src.models.backbones.spec import IMAGE_SIZE, describe_weights, size_pair, word_weights

_HEADS = ("permute", "avgpool", "flatten", "fc", "classifier", "heads", "head")
_STAGES = ("features", "trunk_output", "encoder.layers", "blocks")


class TorchvisionBackbone(Backbone):
    """Activations of a torchvision classifier; what its last linear layer gets is its pooled output.

    Layers are the blocks of a ViT, the parts of `features` or `trunk_output`, or the four stages of a ResNet.

    Args:
        name: of the backbone.
        model_name: as in `torchvision.models.get_model`.
        checkpoint: a local weights file of the whole classifier in torchvision's keys, or with a `projection` in its
            place, as MedCLIP's; loaded strictly.
        pretrained: the name of published weights (`IMAGENET1K_V2`), or true for torchvision's newest. With neither,
            weights are random, fixed by `seed`.
        model_args: further arguments of `torchvision.models.get_model`.
        projection: width of a linear layer without bias in the classifier's place, into a space shared with text.
        seed: of random weights.
        image_size: edge of a square in pixels, or [height, width]. A ViT is made for it, and takes squares only.
        **options: `layer`, `tokens` and the preprocessing of `Backbone`.

    Raises:
        FileNotFoundError: when the checkpoint does not exist.
        ValueError: when the weights cannot be fetched or do not fit, or the model has no such layer or tokens.
    """

    def __init__(
        self,
        name: str,
        model_name: str,
        checkpoint: str | None = None,
        pretrained: bool | str | None = None,
        model_args: Mapping[str, Any] | None = None,
        projection: int | None = None,
        seed: int = 0,
        image_size: int | Sequence[int] = IMAGE_SIZE,
        **options: Any,
    ) -> None:
        if projection is not None:
            require_checkpoint("projection", checkpoint, pretrained)
        arguments = {**_size_argument(model_name, image_size), **(model_args or {})}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                published = None if checkpoint else "DEFAULT" if pretrained is True else pretrained or None
                model: Any = models.get_model(model_name, weights=published, **arguments)
            except (OSError, RuntimeError, KeyError, ValueError) as error:
                raise ValueError(
                    f"Expected torchvision to make {model_name} with weights {pretrained}, got: {error}. Without a "
                    "network give backbone.pretrained=null backbone.checkpoint=<file>."
                ) from error
            if projection is not None:
                model.projection_head = nn.Linear(_remove_classifier(model), projection, bias=False)
        source = {"checkpoint": checkpoint, "pretrained": pretrained, "seed": seed}
        place_weights(model, {"checkpoint": checkpoint}, f"torchvision's {model_name}", torchvision_keys)
        if projection is None:
            _remove_classifier(model)
        super().__init__(
            name,
            model,
            layers=_layers(model),
            model_name=model_name,
            weights=describe_weights(source),
            description=f"{model_name} of torchvision with {word_weights(source)}",
            n_prefix=int(isinstance(model, models.VisionTransformer)),
            channels_last=isinstance(model, SwinTransformer),
            image_size=image_size,
            **options,
        )

    def _body(self, images: Tensor) -> Tensor:
        model: Any = self.model
        if isinstance(model, models.VisionTransformer):
            patches = model._process_input(images)
            return model.encoder(torch.cat([model.class_token.expand(len(patches), -1, -1), patches], dim=1))
        x = images
        for name, child in model.named_children():
            if name not in (*_HEADS, "projection_head"):
                for module in child if isinstance(child, nn.ModuleList) else [child]:
                    x = module(x)
        return x

    def _head(self, native: Tensor) -> Tensor:
        model: Any = self.model
        if isinstance(model, models.VisionTransformer):
            return model.heads(native[:, 0])
        if isinstance(model, models.DenseNet):
            native = torch.relu(native)
        heads = {name: child for name, child in model.named_children() if name in _HEADS}
        if "permute" in heads:  # Swin
            native = heads.pop("permute")(native)
        if "avgpool" in heads:
            native = heads.pop("avgpool")(native)
        elif not _pools(heads["classifier"]):
            native = nn.functional.adaptive_avg_pool2d(native, 1)
        heads.pop("flatten", None)
        (classifier,) = heads.values()
        return classifier(native if _takes_maps(classifier) else native.flatten(1))


def _size_argument(model_name: str, image_size: int | Sequence[int]) -> dict[str, int]:
    if not model_name.startswith("vit_"):
        return {}
    height, width = size_pair(image_size)
    if height != width:
        raise ValueError(
            f"Expected a square backbone.image_size for torchvision's {model_name}, got {height}x{width}: take timm's."
        )
    return {"image_size": height}


def _layers(model: nn.Module) -> list[str]:
    modules = dict(model.named_modules())
    for stages in _STAGES:
        if stages in modules:
            return [f"{stages}.{name}" for name, _ in modules[stages].named_children()]
    return ["layer1", "layer2", "layer3", "layer4"]


def _remove_classifier(model: nn.Module) -> int:
    """Takes the last linear layer out of a model, and returns how wide its input is."""
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ValueError(
            f"Expected a torchvision model that ends in a linear layer, got {type(model).__name__}: take timm's."
        )
    parent, _, child = linear[-1].rpartition(".")
    n_inputs = int(model.get_submodule(linear[-1]).in_features)  # pyright: ignore[reportArgumentType]
    setattr(model.get_submodule(parent), child, nn.Identity())
    return n_inputs


def _first(classifier: nn.Module) -> nn.Module:
    return classifier[0] if isinstance(classifier, nn.Sequential) else classifier


def _pools(classifier: nn.Module) -> bool:
    return isinstance(_first(classifier), nn.AdaptiveAvgPool2d)


def _takes_maps(classifier: nn.Module) -> bool:
    """Whether a classifier begins with a norm of maps (ConvNeXt) or pools itself (MaxViT)."""
    return isinstance(_first(classifier), models.convnext.LayerNorm2d) or _pools(classifier)
