"""Small images of a whole slide and of its patches."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from src.data.slides.slide_files import open_slide


class SlideImages:
    """Reads images from a slide that is open in OpenSlide; transparent pixels (outside the scan) become white."""

    def __init__(self, slide: Any) -> None:
        self._slide = slide

    @property
    def size_level0(self) -> tuple[int, int]:
        """Width and height at level 0, in pixels."""
        return self._slide.dimensions

    @property
    def mpp(self) -> float | None:
        """Micrometres a level-0 pixel; None when the slide does not say."""
        stated = self._slide.properties.get("openslide.mpp-x")
        return None if stated is None else float(stated)

    def thumbnail(self, longest_side: int) -> np.ndarray:
        """Returns the whole slide, RGB uint8 [height, width, 3], its longer side at most `longest_side` pixels."""
        width, height = self.size_level0
        scale = min(1.0, longest_side / max(width, height))
        return self._read(0, 0, width, height, (max(1, round(width * scale)), max(1, round(height * scale))))

    def patch(self, x: int, y: int, size_level0: int, side: int) -> np.ndarray:
        """Returns the square with its top-left corner at level-0 pixel (x, y), RGB uint8 [side, side, 3]."""
        return self._read(x, y, size_level0, size_level0, (side, side))

    def _read(self, x: int, y: int, width: int, height: int, size: tuple[int, int]) -> np.ndarray:
        """Reads from the smallest level that still has every pixel asked for."""
        level = self._slide.get_best_level_for_downsample(max(1.0, width / size[0]))
        downsample = self._slide.level_downsamples[level]
        at_level = max(1, round(width / downsample)), max(1, round(height / downsample))
        region = self._slide.read_region((int(x), int(y)), level, at_level)
        white = Image.new("RGB", region.size, "white")
        white.paste(region, mask=region.getchannel("A"))
        return np.asarray(white.resize(size))


@contextmanager
def open_slide_images(path: str | Path) -> Iterator[SlideImages]:
    """Opens a slide for reading images; raises as `open_slide` does."""
    with open_slide(path) as slide:
        yield SlideImages(slide)
