"""The pictures of slides and of image data sets, as the embedder reads them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from src.data.slides.slide_files import open_slide_images


@dataclass(frozen=True)
class SlidePatches:
    """The patches of a slide.

    The slide is opened for each read, so threads share no handle and no more slides are open than threads read; beside
    decoding a batch of patches, opening takes little.

    Attributes:
        path: the slide.
        coords: level-0 corners [n_patches, 2].
        size_level0: edge of a patch in level-0 pixels.
        side: edge of the image made of it, in pixels.
    """

    path: Path
    coords: np.ndarray
    size_level0: int
    side: int

    @property
    def n_pictures(self) -> int:
        """The number of patches."""
        return len(self.coords)

    def read(self, start: int, stop: int, resize: Callable[[Tensor], Tensor]) -> Tensor:
        """Reads patches; see `Pictures.read`.

        Raises:
            ValueError: when OpenSlide cannot read the slide.
        """
        with open_slide_images(self.path) as images:
            patches = [images.patch(x, y, self.size_level0, self.side) for x, y in self.coords[start:stop]]
        return resize(torch.from_numpy(np.stack(patches)).permute(0, 3, 1, 2))


class ImageReader(Protocol):
    """Reads the images of a data set by item; safe in threads."""

    def read(self, item_id: str) -> np.ndarray:
        """Returns an image, RGB uint8 [height, width, 3].

        Raises:
            FileNotFoundError, ValueError: when its file is missing or bad.
        """
        ...


@dataclass(frozen=True)
class Images:
    """Some images of a data set.

    Attributes:
        item_ids: of the images, one batch or part of one.
        source: reads them.
        skips: whether bad images are left out; else the first is an error.
        bad: why, by id, of the images that were bad; their place holds nothing of use.
    """

    item_ids: Sequence[str]
    source: ImageReader
    skips: bool = False
    bad: dict[str, str] = field(default_factory=dict)

    @property
    def n_pictures(self) -> int:
        """The number of images."""
        return len(self.item_ids)

    def read(self, start: int, stop: int, resize: Callable[[Tensor], Tensor]) -> Tensor:
        """Reads images; see `Pictures.read`.

        Raises:
            FileNotFoundError, ValueError: when a file is missing or bad, unless such are left out.
        """
        return torch.stack([resize(self._read(item_id)) for item_id in self.item_ids[start:stop]])

    def _read(self, item_id: str) -> Tensor:
        try:
            image = self.source.read(item_id)
        except (FileNotFoundError, ValueError) as error:
            if not self.skips:
                raise
            self.bad[item_id] = str(error)
            image = np.zeros((1, 1, 3), np.uint8)
        return torch.from_numpy(np.require(image, requirements="W")).permute(2, 0, 1)
