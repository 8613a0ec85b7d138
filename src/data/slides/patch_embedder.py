"""Activations of the patches of a slide, made batch by batch."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from src.data.slides.slide_files import open_slide_images
from src.inference import Inference
from src.models.backbones.base import Backbone


class PatchEmbedder:
    """Reads and embeds patches batch by batch; when the device runs out of memory, with half the batch from then on.

    Always at full precision: activations are data, and do not depend on how an SAE is trained on them.

    Args:
        backbone: on the device it is to run on.
        batch_size: patches that are read, and go through the backbone, at once.
    """

    def __init__(self, backbone: Backbone, batch_size: int) -> None:
        self._backbone = backbone
        self._batch_size = batch_size
        self._inference = Inference(backbone.device)

    def embed(
        self, read: Callable[[np.ndarray], np.ndarray], coords: np.ndarray, out: np.ndarray | None = None
    ) -> np.ndarray:
        """Returns activations [n_patches, d_in] float32, in the order of the coords.

        Args:
            read: coords [n, 2] of a batch -> its patches, RGB uint8 [n, height, width, 3]; called in a thread.
            coords: of all patches [n_patches, 2].
            out: filled and returned when given.
        """
        if out is None:
            out = np.empty((len(coords), self._backbone.d_in()), dtype=np.float32)
        batches = [coords[start : start + self._batch_size] for start in range(0, len(coords), self._batch_size)]
        reads = (partial(_read, read, batch) for batch in batches)
        start = 0
        for activations in self._inference.run(self._apply, reads, reads_ahead=len(batches) > 1):
            out[start : start + len(activations)] = activations.cpu().numpy()
            start += len(activations)
        return out

    def _apply(self, patches: torch.Tensor) -> torch.Tensor:
        (activations,) = self._backbone.activations(self._backbone.normalize(self._backbone.resize(patches))).values()
        return activations[:, 0]


def _read(read: Callable[[np.ndarray], np.ndarray], coords: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(read(coords)).permute(0, 3, 1, 2)


def read_patches(slide_path: str | Path, coords: np.ndarray, size_level0: int, side: int) -> np.ndarray:
    """Returns the patches of a slide, RGB uint8 [n, side, side, 3].

    The slide is opened for each call, so threads share no handle and no more slides are open than threads read; beside
    decoding a batch of patches, opening takes little.

    Args:
        slide_path: the slide.
        coords: level-0 corners [n, 2].
        size_level0: edge of a patch in level-0 pixels.
        side: edge of the image made of it, in pixels.

    Raises:
        ValueError: when OpenSlide cannot read the slide.
    """
    with open_slide_images(slide_path) as images:
        return np.stack([images.patch(x, y, size_level0, side) for x, y in coords])
