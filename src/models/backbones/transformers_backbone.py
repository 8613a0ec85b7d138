"""Vision models of Hugging Face's transformers as backbones: ViT, DINOv2, CLIP, SigLIP, Swin, ConvNeXt, ..."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from src.models.backbones.base import Backbone
from src.models.backbones.key_maps import transformers_keys
from src.models.backbones.published import require_checkpoint
from src.models.backbones.spec import IMAGE_SIZE, describe_weights, size_pair, word_weights
from src.models.backbones.weights import load_weights, read_weights, refuse_misfits

_PREFIX_TOKENS = ("cls_token", "class_embedding", "distillation_token", "register_tokens")


class TransformersBackbone(Backbone):
    """Activations of a vision model, or of the image tower of a model of images and text.

    Layers are the blocks of a transformer or the stages of a convolutional model.

    Args:
        name: of the backbone.
        model_name: transformers' type of the model: `dinov2`, `vit`, `clip_vision_model`, ...
        checkpoint: a local weights file for the model that `model_args` describe; loaded strictly.
        pretrained: a local folder with config.json and weights, or an id of the hub. With neither, the model is made of
            its type and `model_args`, with random weights fixed by `seed`.
        model_args: values of the model's config, where there is no `pretrained`.
        projection: width of a linear layer without bias behind the pooled features, into a space shared with text.
        pools: whether the model has transformers' own pooling layer behind its class token.
        seed: of random weights.
        image_size: edge of a square in pixels, or [height, width]. Position embeddings of another size are
            interpolated, where the model can.
        **options: `layer`, `tokens` and the preprocessing of `Backbone`.

    Raises:
        ImportError: when transformers is not installed.
        ValueError: when the model cannot be made or fetched, or has no such layer or tokens.
    """

    def __init__(
        self,
        name: str,
        model_name: str,
        checkpoint: str | None = None,
        pretrained: bool | str | None = None,
        model_args: Mapping[str, Any] | None = None,
        projection: int | None = None,
        pools: bool = True,
        seed: int = 0,
        image_size: int | Sequence[int] = IMAGE_SIZE,
        **options: Any,
    ) -> None:
        if projection is not None or pretrained is True:  # transformers has no weights of its own for a type
            require_checkpoint("projection" if projection else "model", checkpoint, pretrained)
        source = {"checkpoint": checkpoint, "pretrained": pretrained, "seed": seed}
        model: Any = _make(model_name, source, model_args or {}, {} if pools else {"add_pooling_layer": False})
        if projection is not None:
            model.projection_head = nn.Linear(model.config.hidden_size, projection, bias=False)
        if checkpoint is not None:
            model = _load(model, checkpoint, model_name)
        super().__init__(
            name,
            model,
            layers=_layers(model),
            model_name=model_name,
            weights=describe_weights(source),
            description=f"{model_name} of transformers with {word_weights(source)}",
            n_prefix=_n_prefix(model),
            image_size=image_size,
            **options,
        )

    def _body(self, images: Tensor) -> Tensor:
        model: Any = self.model
        trained_at = getattr(model.config, "image_size", None)
        is_trained_at = trained_at is None or size_pair(trained_at) == self.input_size
        can_interpolate = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
        options = {"interpolate_pos_encoding": True} if can_interpolate and not is_trained_at else {}
        return model(images, **options).last_hidden_state

    def _head(self, native: Tensor) -> Tensor:
        model: Any = self.model
        pooler = getattr(model, "pooler", None)
        if native.ndim == 4:  # ConvNeXt has a norm in place of a pooler
            return model.layernorm(native.mean(dim=(2, 3))) if pooler is None else pooler(native).flatten(1)
        if isinstance(pooler, nn.AdaptiveAvgPool1d):  # Swin
            return pooler(native.transpose(1, 2)).flatten(1)
        if isinstance(getattr(model, "head", None), nn.Module):  # SigLIP
            return model.head(native)
        if pooler is not None:  # ViT, BEiT
            return pooler(native)
        norm = getattr(model, "post_layernorm", None)  # CLIP; DINO's class token is normed already
        return native[:, 0] if norm is None else norm(native[:, 0])


def _make(model_name: str, source: Mapping[str, Any], model_args: Mapping[str, Any], options: dict[str, Any]) -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ImportError(
            "Expected transformers for this backbone, found none: pip install transformers (the extra `hf`)."
        ) from error
    pretrained = None if source["checkpoint"] else source["pretrained"] or None
    try:
        if pretrained is not None:
            model = transformers.AutoModel.from_pretrained(pretrained, dtype=torch.float32, **options)
        else:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(source["seed"])
                config = transformers.AutoConfig.for_model(model_name, **model_args)
                model = transformers.AutoModel.from_config(config, **options)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"Expected transformers to make {model_name} with weights {pretrained}, got: {error}. Without a network, "
            "and for gated models, download them and give backbone.pretrained=<folder>."
        ) from error
    return getattr(model, "vision_model", model)


def _load(model: Any, checkpoint: str, model_name: str) -> Any:
    """Returns the model with the weights of a file, whose keys transformers itself renames: they change by version."""
    weights = read_weights(checkpoint, model_name)
    own = transformers_keys(weights)
    projection = {key: own.pop(key) for key in list(own) if key.startswith("projection_head.")}
    head = model.__dict__["_modules"].pop("projection_head", None)
    options = {"add_pooling_layer": False} if getattr(model, "pooler", True) is None else {}
    loaded, found = type(model).from_pretrained(
        None, config=model.config, state_dict=own, output_loading_info=True, dtype=torch.float32, **options
    )
    misfits = {
        "missing": sorted(found["missing_keys"]),
        "unexpected": sorted(found["unexpected_keys"]),
        "of another shape": sorted(str(key) for key in found["mismatched_keys"]),
    }
    refuse_misfits(misfits, checkpoint, model_name, weights)
    if head is not None:
        load_weights(
            head,
            {key.removeprefix("projection_head."): value for key, value in projection.items()},
            checkpoint,
            model_name,
            weights,
        )
        loaded.projection_head = head
    return loaded


def _layers(model: nn.Module) -> list[str]:
    """Returns the blocks or stages: the outermost list of modules."""
    lists = [name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    outermost = min(lists, key=lambda name: name.count("."))
    return [f"{outermost}.{name}" for name, _ in model.get_submodule(outermost).named_children()]


def _n_prefix(model: nn.Module) -> int:
    """Returns the number of class and register tokens, which are parameters [(1,) n, d] or [d]."""
    found = [p for name, p in model.named_parameters() if name.rpartition(".")[2] in _PREFIX_TOKENS]
    return sum(1 if parameter.ndim == 1 else parameter.shape[-2] for parameter in found)
