"""Eight SAEs on one stream of image tokens against one alone on the same stream: seconds per SAE.

    python -m experiments.benchmarks.sweep

A vit_tiny with random weights computes the 196 tokens of each image while SAEs 192 -> 1,536 (k 4 to 32, 16 alone) train
on them for one epoch. Both are trained in turn, round by round, and the medians of the rounds are printed.
"""

import argparse
import functools
import logging
import statistics
import sys
import time
import warnings
from collections.abc import Sequence
from typing import Any

import lightning
import numpy as np
import timm
import torch

from src.data.feeding.activations import ActivationDataModule
from src.data.feeding.rows import RowSource
from src.models.saes.batch_topk import BatchTopK
from src.modules.sae import SAEModule
from src.modules.sae_group import SAEGroup

KS = (4, 8, 12, 16, 20, 24, 28, 32)
N_TOKENS, D_IN, N_LATENTS = 196, 192, 1536
IMAGES_AT_ONCE = 32


class TokenRows(RowSource):
    """A `RowSource` whose rows are the tokens of a ViT's last block, computed when they are read."""

    dtype = np.dtype(np.float32)
    d_in = D_IN
    identity = "vit_tiny on noise"
    n_together = IMAGES_AT_ONCE * N_TOKENS

    def __init__(self, n_images: int) -> None:
        torch.manual_seed(0)
        self._model: Any = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=0).eval()
        self._noise = torch.randn(IMAGES_AT_ONCE, 3, 224, 224)
        self.n_rows = n_images * N_TOKENS
        self.slide_starts = np.arange(0, self.n_rows, N_TOKENS)
        # Images are computed together, and a read that begins inside them finds them again.
        self._tokens = functools.lru_cache(maxsize=2)(self._compute)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Returns rows [stop - start, d_in]."""
        size = IMAGES_AT_ONCE * N_TOKENS
        parts = [self._tokens(number) for number in range(start // size, -(-stop // size))]
        first = start // size * size
        return np.concatenate(parts)[start - first : stop - first]

    @torch.inference_mode()
    def _compute(self, number: int) -> np.ndarray:
        return self._model.forward_features(self._noise + 0.1 * number)[:, 1:].reshape(-1, D_IN).numpy()


class _NoRows(TokenRows):
    def __init__(self) -> None:
        self.n_rows, self.slide_starts = 0, np.empty(0, dtype=np.int64)


def main() -> None:
    """Times one SAE alone and eight together in turn, and prints one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    rows, backbone, alone, together = TokenRows(arguments.images), [], [], []
    for _ in range(arguments.rounds):
        backbone.append(_seconds_of_backbone(rows))
        alone.append(_seconds(rows, [16]))
        together.append(_seconds(rows, KS) / len(KS))
    one, eight, bare = (statistics.median(values) for values in (alone, together, backbone))
    sys.stdout.write(
        f"vit_tiny, {arguments.images} images of {N_TOKENS} tokens, SAEs {D_IN} -> {N_LATENTS}, {arguments.threads} "
        f"threads, torch {torch.__version__}; medians of {arguments.rounds} rounds\n"
        f"{'':<24}{'s per SAE':>12}{'alone / this':>14}\n"
        f"{'the backbone by itself':<24}{bare:>12.2f}{'':>14}\n"
        f"{'alone':<24}{one:>12.2f}{1:>14.2f}\n"
        f"{'in a sweep of 8':<24}{eight:>12.2f}{one / eight:>14.2f}\n"
    )


def _seconds_of_backbone(rows: TokenRows) -> float:
    rows._tokens.cache_clear()
    started = time.perf_counter()
    for start in range(0, rows.n_rows, IMAGES_AT_ONCE * N_TOKENS):
        rows.read(start, min(start + IMAGES_AT_ONCE * N_TOKENS, rows.n_rows))
    return time.perf_counter() - started


def _seconds(rows: TokenRows, ks: Sequence[int]) -> float:
    rows._tokens.cache_clear()
    torch.manual_seed(0)
    members = [SAEModule(BatchTopK(D_IN, N_LATENTS, k=k)) for k in ks]
    data = ActivationDataModule(rows, _NoRows(), 4096, 4, seed=0, residency="stream", n_workers=1)
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    started = time.perf_counter()
    trainer.fit(members[0] if len(members) == 1 else SAEGroup(members), datamodule=data)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
