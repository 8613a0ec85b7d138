"""The backbone of a configuration, and activations that it computes while an SAE trains on them."""

import logging
from typing import Any

from src import config
from src.checks.devices import n_devices
from src.data.streamed_fold import StreamedFold, open_streamed_fold
from src.folder_names import computes_activations
from src.inference import choose_device
from src.models.backbones.base import Backbone

_LOGGER = logging.getLogger(__name__)

EMBED_FIRST = "keep the activations: task=embed first, then train.residency=mmap"


def open_backbone(cfg: Any) -> Backbone:
    """Returns the configured backbone, on CUDA where there is one and `trainer.accelerator` allows it.

    Raises:
        ValueError: when the configuration has none.
    """
    if not computes_activations(cfg.backbone):
        raise ValueError(
            f"Expected a backbone to compute activations with, got backbone={cfg.backbone.name}: give backbone=<name>, "
            "and backbone.checkpoint=<file of its weights> where they are gated."
        )
    backbone: Backbone = config.instantiate(cfg.backbone)
    return backbone.to(choose_device(cfg.trainer.accelerator, cfg.trainer.devices))


def open_stream(cfg: Any) -> StreamedFold:
    """Opens the configured fold for train.residency=stream.

    Activations are those that task=embed would write, up to the rounding of other batches and of
    `train.float32_matmul_precision`, which holds for the backbone too while an SAE trains.

    Raises:
        FileNotFoundError, ValueError: as `open_streamed_fold`; and when several devices are to train, or features to be
            standardised, or there is no backbone.
    """
    if (devices := n_devices(cfg.trainer.accelerator, cfg.trainer.devices)) > 1:
        raise ValueError(
            f"Expected trainer.devices=1 with train.residency=stream, got {devices}: each process would compute all "
            f"activations. Give trainer.devices=1, or {EMBED_FIRST}."
        )
    if cfg.dataset.standardize:
        raise ValueError(
            "Expected dataset.standardize=false with train.residency=stream, got true: mean and scale are fitted on "
            f"packed activations. Give sae.input_norm=centre, global_scale or z_score instead, or {EMBED_FIRST}."
        )
    fold = open_streamed_fold(cfg, open_backbone(cfg))
    counts = fold.rows("train").n_rows, len(fold.split.train)
    _LOGGER.info("Computing the activations of %d patches of %d train slides in each epoch.", *counts)
    return fold
