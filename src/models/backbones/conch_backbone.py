"""CONCH's image towers as backbones, from the published files and without MahmoodLab's package."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import timm
import torch
from jaxtyping import Float
from open_clip.transformer import AttentionalPooler
from torch import Tensor, nn

from src.models.backbones.base import Backbone
from src.models.backbones.key_maps import conch_tower_keys
from src.models.backbones.published import place_weights, require_checkpoint
from src.models.backbones.spec import describe_weights, size_pair, word_weights


class _Architecture(NamedTuple):
    trunk: str
    trunk_args: dict[str, Any]
    width: int
    d_out: int
    has_projection: bool


# Lu et al. 2024, "A visual-language foundation model for computational pathology" (CoCa with a ViT-B/16; its
# conch_ViT-B-16.json), and Ding et al. 2024, "Multimodal whole slide foundation model for pathology" (TITAN, whose
# patch encoder is CONCH v1.5: ViT-L/16 with layer scale). Both were trained at 448 pixels, with 8 heads of pooling.
_ARCHITECTURES = {
    "conch_ViT-B-16": _Architecture("vit_base_patch16_224", {"dynamic_img_size": True}, 768, 512, True),
    "conch_v1_5": _Architecture("vit_large_patch16_224", {"init_values": 1e-6}, 1024, 768, False),
}
_TRAINED_AT = 448
_N_HEADS = 8


class ConchTower(nn.Module):
    """A ViT, an attention pooling of all its tokens by one learnt query, a norm, and a projection.

    Args:
        trunk: timm's ViT, without classifier.
        width: of its tokens.
        d_out: of the pooled features.
        has_projection: into the space shared with text.
    """

    def __init__(self, trunk: nn.Module, width: int, d_out: int, has_projection: bool) -> None:
        super().__init__()
        self.trunk = trunk
        self.attn_pool_contrast = AttentionalPooler(d_out, width, n_head=_N_HEADS, n_queries=1)
        self.ln_contrast = nn.LayerNorm(d_out)
        self.projection_head = nn.Linear(d_out, d_out, bias=False) if has_projection else None

    def pool(self, tokens: Float[Tensor, "batch n_tokens width"]) -> Float[Tensor, "batch d_out"]:
        """Returns the pooled features of all tokens, class token included."""
        return self.ln_contrast(self.attn_pool_contrast(tokens)[:, 0])


class ConchBackbone(Backbone):
    """Activations of CONCH v1 or v1.5. `pooled` is what CLAM, TRIDENT and sae-1n extract; not normalised.

    Layers are the blocks of the ViT. At another `image_size` than 448 the position embeddings of v1 are interpolated in
    the forward pass, as in CLAM, which feeds 224 pixels; those of v1.5 when they are loaded, as TITAN does in its.

    Args:
        name: of the backbone.
        model_name: `conch_ViT-B-16` or `conch_v1_5`.
        checkpoint: the published file (CONCH: `pytorch_model.bin`, of which the text towers are not read).
        pretrained: an id of the hub to fetch the file from.
        model_args: further arguments of the ViT (`depth`, for tests).
        seed: of random weights, where there is neither.
        image_size: edge of a square in pixels, or [height, width].
        **options: `layer`, `tokens` and the preprocessing of `Backbone`.

    Raises:
        FileNotFoundError: when the checkpoint does not exist.
        ValueError: when the weights cannot be fetched or do not fit, or the model has no such layer or tokens.
    """

    def __init__(
        self,
        name: str,
        model_name: Literal["conch_ViT-B-16", "conch_v1_5"] = "conch_ViT-B-16",
        checkpoint: str | None = None,
        pretrained: bool | str | None = None,
        model_args: Mapping[str, Any] | None = None,
        seed: int = 0,
        image_size: int | Sequence[int] = _TRAINED_AT,
        **options: Any,
    ) -> None:
        if pretrained is True:
            require_checkpoint("model", checkpoint, pretrained)
        trunk_name, trunk_args, width, d_out, has_projection = _ARCHITECTURES[model_name]
        made_at = _TRAINED_AT if "dynamic_img_size" in trunk_args else size_pair(image_size)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            trunk: Any = timm.create_model(
                trunk_name, num_classes=0, img_size=made_at, **trunk_args, **(model_args or {})
            )
            tower = ConchTower(trunk, width, d_out, has_projection)
        source = {"checkpoint": checkpoint, "pretrained": pretrained, "seed": seed}
        place_weights(tower, source, model_name, lambda weights: conch_tower_keys(weights, trunk.patch_embed.grid_size))
        super().__init__(
            name,
            tower,
            layers=[f"trunk.blocks.{index}" for index in range(len(trunk.blocks))],
            model_name=model_name,
            weights=describe_weights(source),
            description=f"{model_name} with {word_weights(source)}",
            n_prefix=1,
            image_size=image_size,
            **options,
        )

    def _body(self, images: Tensor) -> Tensor:
        tower: Any = self.model
        return tower.trunk.forward_features(images)

    def _head(self, native: Tensor) -> Tensor:
        tower: Any = self.model
        return tower.pool(native)
