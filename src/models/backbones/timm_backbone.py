"""Any timm model as a backbone."""

from collections.abc import Mapping, Sequence
from typing import Any

import timm
import torch
from torch import Tensor, nn

from src.models.backbones.base import Backbone
from src.models.backbones.fixed_padding import fix_padding
from src.models.backbones.key_maps import timm_keys
from src.models.backbones.published import place_weights, require_checkpoint
from src.models.backbones.spec import IMAGE_SIZE, describe_weights, size_pair, word_weights


class TimmBackbone(Backbone):
    """Activations of a timm model.

    Layers are the blocks of a ViT or the stages of a convolutional model, as in timm's `feature_info`; of ResNets the
    stem counts as 0. A model whose input size is fixed when it is made (ViT, Swin) is made for `image_size`.

    Args:
        name: of the backbone.
        model_name: timm's name, or `hf-hub:<owner>/<model>`.
        checkpoint: a local weights file, in timm's keys or those of a family that `timm_keys` knows; loaded strictly,
            but for batch counters and for the classifier where the model has none.
        pretrained: true fetches the weights that timm has for the model, an id (`<owner>/<model>`) those in that
            repository of the hub. With neither, weights are random, fixed by `seed`.
        model_args: further arguments of `timm.create_model`; layers may be named (`mlp_layer: SwiGLUPacked`,
            `act_layer: SiLU`). Without `num_classes` there is no classifier.
        projection: width of a linear layer without bias behind the pooled features, into a space shared with text.
        padded_for: the edge of the input for which the padding of "same" convolutions is fixed, see `fix_padding`.
        seed: of random weights.
        image_size: edge of a square in pixels, or [height, width].
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
        padded_for: int | None = None,
        seed: int = 0,
        image_size: int | Sequence[int] = IMAGE_SIZE,
        **options: Any,
    ) -> None:
        if projection is not None and pretrained is True:
            require_checkpoint("projection", checkpoint, pretrained)
        arguments: dict[str, Any] = {"num_classes": 0, **_with_layers(model_args or {})}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                if _is_size_fixed(model_name) and not {"img_size", "dynamic_img_size"} & arguments.keys():
                    arguments["img_size"] = size_pair(image_size)
                model: Any = timm.create_model(
                    model_name, pretrained=pretrained is True and checkpoint is None, **arguments
                )
                if projection is not None:
                    model.projection_head = nn.Linear(model.num_features, projection, bias=False)
            except (OSError, RuntimeError) as error:
                raise ValueError(
                    f"Expected timm to make {model_name} (pretrained={pretrained}), got: {error}. Without a network "
                    "give backbone.pretrained=false backbone.checkpoint=<file>."
                ) from error
        if padded_for is not None:
            fix_padding(model, padded_for)
        source = {"checkpoint": checkpoint, "pretrained": pretrained, "seed": seed}
        place_weights(model, source, model_name, lambda weights: timm_keys(weights, model))
        super().__init__(
            name,
            model,
            layers=feature_layers(model),
            model_name=model_name,
            weights=describe_weights(source),
            description=f"{model_name} with {word_weights(source)}",
            n_prefix=getattr(model, "num_prefix_tokens", 0),
            channels_last=getattr(model, "output_fmt", "NCHW") == "NHWC",
            image_size=image_size,
            **options,
        )

    def _body(self, images: Tensor) -> Tensor:
        model: Any = self.model
        return model.forward_features(images)

    def _head(self, native: Tensor) -> Tensor:
        model: Any = self.model
        return model.forward_head(native)


def _with_layers(model_args: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments with the layers that YAML can only name."""
    layers = {"mlp_layer": timm.layers, "act_layer": nn}
    return {name: getattr(layers[name], value) if name in layers else value for name, value in model_args.items()}


def _is_size_fixed(model_name: str) -> bool:
    """Whether a model is made for an input size; of those on the hub, its own config says for which."""
    config = None if ":" in model_name else timm.get_pretrained_cfg(model_name)
    return config is not None and config.fixed_input_size


def feature_layers(model: Any) -> list[str]:
    """Returns the modules of timm's `feature_info`, with the stages between them that do not halve the map."""
    names = [info["module"] for info in getattr(model.feature_info, "info", model.feature_info)]
    container, _, last = names[-1].rpartition(".")
    if not (container and last.isdecimal()):
        return names
    before = [name for name in names if not name.startswith(f"{container}.")]
    return before + [f"{container}.{child}" for child, _ in model.get_submodule(container).named_children()]
