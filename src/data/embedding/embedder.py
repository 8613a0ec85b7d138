"""Activations of pictures: read and resized in threads ahead of the model, which runs over batches."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from src.inference import Inference
from src.models.backbones.base import Backbone
from src.ops.dense_products import FastLinearLayers


class Pictures(Protocol):
    """Pictures that are embedded together: the patches of a slide, or some images."""

    @property
    def n_pictures(self) -> int:
        """How many."""
        ...

    def read(self, start: int, stop: int, resize: Callable[[Tensor], Tensor]) -> Tensor:
        """Reads pictures; called in threads.

        Args:
            start: the first.
            stop: one past the last.
            resize: uint8 [..., 3, height, width] -> the same at the model's input size.

        Returns:
            uint8 [stop - start, 3, height, width] of the model's input size.
        """
        ...


P = TypeVar("P", bound=Pictures)


class Embedder:
    """Runs a backbone over pictures; when the device runs out of memory, with half the batch from then on.

    Always at full precision: activations are data, and do not depend on how an SAE is trained on them. A batch holds
    pictures of one unit only, so what a slide's patches give does not depend on the other slides.

    Attributes:
        backbone: see below.
        batch_size: see below.

    Args:
        backbone: on the device it is to run on.
        batch_size: pictures that are read, and go through the backbone, at once.
        n_workers: threads that read and resize; 0 reads when the model is waiting.
    """

    def __init__(self, backbone: Backbone, batch_size: int, n_workers: int = 1) -> None:
        self.backbone = backbone
        self.batch_size, self._n_workers = batch_size, n_workers
        self._inference = Inference(next(backbone.parameters()).device)

    @property
    def seconds_waited(self) -> float:
        """How long the model has waited for pictures."""
        return self._inference.seconds_waited

    def embed(self, units: Iterable[P]) -> Iterator[tuple[P, dict[str, np.ndarray]]]:
        """Yields each unit with its activations by layer: [n_pictures, n_tokens, d_in] float32, in order.

        Args:
            units: asked for one by one, some batches ahead; of one without pictures nothing comes.
        """
        pending: deque[P] = deque()

        def reads() -> Iterator[Callable[[], Tensor]]:
            for unit in units:
                if unit.n_pictures:
                    pending.append(unit)
                for start in range(0, unit.n_pictures, self.batch_size):
                    stop = min(start + self.batch_size, unit.n_pictures)
                    yield partial(unit.read, start, stop, self.backbone.resize)

        found: dict[str, np.ndarray] = {}
        n_filled = 0
        for activations in self._inference.run(self._forward, reads(), n_workers=self._n_workers):
            n = len(next(iter(activations.values())))
            for layer, values in activations.items():
                if not n_filled:
                    found[layer] = np.empty((pending[0].n_pictures, *values.shape[1:]), np.float32)
                found[layer][n_filled : n_filled + n] = values.cpu().numpy()
            n_filled += n
            if n_filled == pending[0].n_pictures:
                yield pending.popleft(), found
                found, n_filled = {}, 0

    def _forward(self, pictures: Tensor) -> dict[str, Tensor]:
        with torch.inference_mode(), FastLinearLayers():
            return self.backbone.activations(self.backbone.normalize(pictures))
