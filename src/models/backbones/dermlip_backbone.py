"""DermLIP's tower of PanDerm-base: a BEiT of timm's, with a pooling of its own before its head."""

from typing import Any

from torch import Tensor

from src.models.backbones.timm_backbone import TimmBackbone


class DermLipBackbone(TimmBackbone):
    """Activations of DermLIP's image tower with PanDerm-base; its head is the projection.

    All tokens are normed, the patch tokens averaged, and the mean normed again, by the same norm.

    Source: Yan et al. 2025, "Derm1M"; SiyuanYan1/Derm1M, src/open_clip/utils.py (`call_PanDerm_base_visual`), and
    SiyuanYan1/MAKE, src/CAE/models/modeling_finetune.py (`VisionTransformer`).

    Args, errors: as of `TimmBackbone`; `model_args.num_classes` is the width of the head.
    """

    def _head(self, native: Tensor) -> Tensor:
        model: Any = self.model
        return model.norm(native[:, self.n_prefix :].mean(dim=1))

    def _has_projection(self) -> bool:
        return True

    def _project(self, pooled: Tensor) -> Tensor:
        model: Any = self.model
        return model.head(pooled)
