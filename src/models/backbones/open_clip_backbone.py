"""Any open_clip model as a backbone: its image tower, and the text tower beside it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
from jaxtyping import Float, Int
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import Tensor

from src.models.backbones.base import Backbone
from src.models.backbones.key_maps import open_clip_keys
from src.models.backbones.maple import add_prompts, maple_keys
from src.models.backbones.published import place_weights, require_checkpoint
from src.models.backbones.spec import IMAGE_SIZE, WEIGHT_SUFFIXES, describe_weights, size_pair, word_weights
from src.models.backbones.timm_backbone import feature_layers


class OpenClipBackbone(Backbone):
    """Activations of an open_clip model's image tower; `tail` ends in the space shared with text.

    Layers are the residual blocks of a transformer, the four stages of a ResNet, or those of `TimmBackbone` where the
    tower is timm's. The output of a transformer is after its last norm where that comes before pooling.

    Attributes:
        clip: both towers.

    Args:
        name: of the backbone.
        model_name: open_clip's architecture, or `hf-hub:<owner>/<model>`.
        checkpoint: a local weights file of both towers, in open_clip's keys or those of transformers' CLIP; loaded
            strictly.
        pretrained: a local file that open_clip opens, its tag of published weights, or true for those of `hf-hub:`;
            with an id (`<owner>/<model>`) its repository's file is read as a `checkpoint`. Random weights when None.
        model_args: further arguments of `open_clip.create_model`.
        prompts: `depth` and `length` of MaPLe's prompts, see `add_prompts`. `checkpoint` is then MaPLe's file, and
            `pretrained` the CLIP that it was made of, whose words it needs.
        seed: of random weights.
        image_size: edge of a square in pixels, or [height, width]; the tower is made for it.
        **options: `layer`, `tokens` and the preprocessing of `Backbone`.

    Raises:
        ValueError: when open_clip cannot make the model or its weights cannot be had, or the model has no such layer
            or tokens.
    """

    def __init__(
        self,
        name: str,
        model_name: str,
        checkpoint: str | None = None,
        pretrained: bool | str | None = None,
        model_args: Mapping[str, Any] | None = None,
        prompts: Mapping[str, int] | None = None,
        seed: int = 0,
        image_size: int | Sequence[int] = IMAGE_SIZE,
        **options: Any,
    ) -> None:
        if prompts is not None:
            require_checkpoint("prompts", checkpoint, pretrained)
        height, width = size_pair(image_size)
        arguments = {"force_image_size": height if height == width else (height, width), **(model_args or {})}
        is_ours = _is_repository(pretrained) or (checkpoint is not None and prompts is None)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                clip: Any = open_clip.create_model(
                    model_name,
                    pretrained=pretrained if isinstance(pretrained, str) and not is_ours else None,
                    load_weights=bool(pretrained) and not is_ours,
                    device=torch.get_default_device(),
                    **arguments,
                )
            except (OSError, RuntimeError) as error:
                raise ValueError(
                    f"Expected open_clip to make {model_name} with weights {pretrained}, got: {error}. Without a "
                    "network, and for gated models, download them and give backbone.checkpoint=<file>."
                ) from error
            if prompts is not None:
                add_prompts(clip, **prompts)
        source = {"checkpoint": checkpoint, "pretrained": pretrained, "seed": seed}
        if is_ours or checkpoint is not None:
            place_weights(clip, source, model_name, lambda weights: open_clip_keys(maple_keys(weights, clip)))
        super().__init__(
            name,
            clip.visual,
            layers=_layers(clip.visual),
            model_name=model_name,
            weights=describe_weights(source),
            description=f"{model_name} with {word_weights(source)}",
            n_prefix=_n_prefix(clip.visual) + (0 if prompts is None else prompts["length"]),
            channels_last=getattr(_trunk(clip.visual), "output_fmt", "NCHW") == "NHWC",
            image_size=image_size,
            **options,
        )
        self.clip = clip.eval().requires_grad_(False)
        self._knows_words = prompts is None or checkpoint is None or bool(pretrained)

    def text_features(self, tokens: Int[Tensor, "batch context"]) -> Float[Tensor, "batch n"]:
        """Returns features [batch, n] of tokenised text in the shared space, not normalised.

        Raises:
            ValueError: of a model with MaPLe's prompts that was made without CLIP's own words.
        """
        if not self._knows_words:
            raise ValueError(
                f"Expected backbone.pretrained to name the CLIP that the prompts of {self.name} were learnt with, got "
                "none: give backbone.pretrained=openai, or OpenAI's file."
            )
        return self.clip.encode_text(tokens)

    def _body(self, images: Tensor) -> Tensor:
        tower: Any = self.model
        if isinstance(tower, TimmModel):
            return _trunk(tower).forward_features(images)
        if not isinstance(tower, VisionTransformer):
            return tower.layer4(tower.layer3(tower.layer2(tower.layer1(tower.stem(images)))))
        tokens = tower.transformer(tower._embeds(images))
        return tower.ln_post(tokens) if _norms_first(tower) else tokens

    def _head(self, native: Tensor) -> Tensor:
        tower: Any = self.model
        if isinstance(tower, TimmModel):
            return _trunk(tower).forward_head(native)
        if not isinstance(tower, VisionTransformer):
            return tower.attnpool(native)
        pool = tower._global_pool if _norms_first(tower) else tower._pool
        return pool(native)[0]

    def _has_projection(self) -> bool:
        return True

    def _project(self, pooled: Tensor) -> Tensor:
        tower: Any = self.model
        if isinstance(tower, TimmModel):
            return tower.head(pooled)
        if not isinstance(tower, VisionTransformer) or tower.proj is None:
            return pooled  # a ResNet's attention pooling projects already
        return pooled @ tower.proj


def _is_repository(pretrained: bool | str | None) -> bool:
    is_file = isinstance(pretrained, str) and (Path(pretrained).exists() or Path(pretrained).suffix in WEIGHT_SUFFIXES)
    return isinstance(pretrained, str) and pretrained.count("/") == 1 and not is_file


def _trunk(tower: Any) -> Any:
    return tower.trunk if isinstance(tower, TimmModel) else tower


def _norms_first(tower: VisionTransformer) -> bool:
    return tower.attn_pool is None and not tower.final_ln_after_pool


def _n_prefix(tower: Any) -> int:
    return 1 if isinstance(tower, VisionTransformer) else getattr(_trunk(tower), "num_prefix_tokens", 0)


def _layers(tower: Any) -> list[str]:
    if isinstance(tower, TimmModel):
        return [f"trunk.{name}" for name in feature_layers(tower.trunk)]
    if isinstance(tower, VisionTransformer):
        return [f"transformer.resblocks.{index}" for index in range(len(tower.transformer.resblocks))]
    return ["layer1", "layer2", "layer3", "layer4"]
