"""Any timm model as a backbone."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import load_state_dict
from torch import Tensor, nn

from src.models.backbones.base import Backbone
from src.models.backbones.spec import IMAGE_SIZE, describe_weights, size_pair, word_weights


class TimmBackbone(Backbone):
    """Activations of a timm model.

    Layers are the blocks of a ViT or the stages of a convolutional model, as in timm's `feature_info`; of ResNets the
    stem counts as 0. A model whose input size is fixed when it is made (ViT, Swin) is made for `image_size`.

    Args:
        name: of the backbone.
        model_name: timm's name, or `hf-hub:<owner>/<model>`.
        checkpoint: a local weights file in timm's key names; loaded strictly, but for batch counters and for the
            classifier where the model has none.
        pretrained: true fetches the weights that timm has for the model, an id (`<owner>/<model>`) those in that
            repository of the hub. With neither, weights are random, fixed by `seed`.
        model_args: further arguments of `timm.create_model`. Without `num_classes` there is no classifier.
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
        seed: int = 0,
        image_size: int | Sequence[int] = IMAGE_SIZE,
        **options: Any,
    ) -> None:
        if checkpoint is not None and not Path(checkpoint).is_file():
            raise FileNotFoundError(
                f"Expected the weights of {model_name} at {checkpoint}, found none. Download them (gated models need "
                "their licence accepted) and give backbone.checkpoint=<file>."
            )
        arguments: dict[str, Any] = {"num_classes": 0, **(model_args or {})}
        if isinstance(pretrained, str) and checkpoint is None:
            arguments["pretrained_cfg_overlay"] = {"hf_hub_id": pretrained, "source": "hf-hub", "custom_load": False}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                if _is_size_fixed(model_name) and not {"img_size", "dynamic_img_size"} & arguments.keys():
                    arguments["img_size"] = size_pair(image_size)
                model: Any = timm.create_model(
                    model_name, pretrained=bool(pretrained) and checkpoint is None, **arguments
                )
            except (OSError, RuntimeError) as error:
                raise ValueError(
                    f"Expected timm to make {model_name} (pretrained={pretrained}), got: {error}. Without a network "
                    "give backbone.pretrained=false backbone.checkpoint=<file>."
                ) from error
        if checkpoint is not None:
            _load(model, checkpoint)
        source = {"checkpoint": checkpoint, "pretrained": pretrained, "seed": seed}
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


def _load(model: nn.Module, checkpoint: str) -> None:
    """Loads weights that must be all there, and no others: but for batch counters and a classifier that is left out.

    Batch counters serve training alone, and weights that come from other libraries have none.
    """
    weights = load_state_dict(checkpoint)
    # timm's own conversion of the family, which fits position embeddings to the input size.
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    weights = weights if convert is None else convert(weights, model)
    weights = {key: value for key, value in weights.items() if not _is_classifier(key, model)}
    try:
        missing, unexpected = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise ValueError(f"Expected {checkpoint} to hold the weights of the configured model: {error}") from error
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    if missing or unexpected:
        raise ValueError(
            f"Expected {checkpoint} to hold the weights of the configured model, got {len(missing)} missing "
            f"({', '.join(missing[:3])}) and {len(unexpected)} others ({', '.join(unexpected[:3])}). Give the "
            "backbone.model_name they are of."
        )


def _is_classifier(key: str, model: Any) -> bool:
    classifier = (getattr(model, "pretrained_cfg", None) or {}).get("classifier")
    names = [classifier] if isinstance(classifier, str) else classifier or []
    return not model.num_classes and key.startswith(tuple(f"{name}." for name in names))
