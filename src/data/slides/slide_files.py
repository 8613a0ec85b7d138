"""Finds and opens whole-slide images, and makes small images of them and of their patches."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from src.files import list_files

# What OpenSlide reads by suffix; formats that are folders or need companions are named by their main file.
SUFFIXES = (".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".bif", ".svslide", ".czi", ".dcm")

_MOST_PIXELS = 50_000_000


def list_slides(slides_dir: str | Path) -> dict[str, Path]:
    """Returns the slides of a folder by slide id, the file name without suffix, sorted.

    Names that start with a dot are no slides.

    Raises:
        FileNotFoundError: when the folder does not exist or holds no slide.
        ValueError: when two files have one id.
    """
    folder = Path(slides_dir)
    found: dict[str, Path] = {}
    for path in list_files(folder):
        if path.suffix.lower() in SUFFIXES:
            if path.stem in found:
                raise ValueError(
                    f"Expected one file a slide in {folder}, got {found[path.stem].name} and {path.name}: remove one."
                )
            found[path.stem] = path
    if not found:
        raise FileNotFoundError(
            f"Expected slides ({', '.join(SUFFIXES)}) in {folder}, found none. Give dataset.slides_dir=<folder>."
        )
    return found


def find_slide(slides_dir: str | Path, slide_id: str) -> Path:
    """Returns the file of a slide.

    Raises:
        FileNotFoundError: when there is none.
    """
    for suffix in SUFFIXES:
        path = Path(slides_dir) / f"{slide_id}{suffix}"
        if path.is_file() and not path.name.startswith("."):
            return path
    raise FileNotFoundError(
        f"Expected slide {slide_id!r} in {slides_dir} with one of the suffixes {', '.join(SUFFIXES)}, found none."
    )


@contextmanager
def open_slide(path: str | Path) -> Iterator[Any]:
    """Opens a slide with OpenSlide.

    Raises:
        ImportError: when OpenSlide is not installed.
        ValueError: when OpenSlide cannot read the file, also in the block.
    """
    try:
        import openslide
    except ImportError as error:
        raise ImportError(
            "Expected OpenSlide to read slides, found it not installed: pip install openslide-python openslide-bin."
        ) from error
    try:
        with openslide.OpenSlide(path) as slide:
            yield slide
    except openslide.OpenSlideError as error:  # at opening, or later where a part of the file is damaged
        raise ValueError(f"Expected a slide that OpenSlide reads at {path}, got {error}. Copy it again.") from error


def stated_mpp(slide: Any) -> float | None:
    """Returns the micrometres a level-0 pixel that a slide, open in OpenSlide, states; None when it does not."""
    stated = slide.properties.get("openslide.mpp-x")
    try:
        mpp = float(stated or "nan")
    except ValueError:  # some scanners write a text there
        return None
    return mpp if 0 < mpp < math.inf else None


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
        return stated_mpp(self._slide)

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
        columns, rows = max(1, round(width / downsample)), max(1, round(height / downsample))
        # A large slide of one level is made smaller band by band, so that it is never whole in memory.
        factor = max(1, min(columns // size[0], rows // size[1])) if columns * rows > _MOST_PIXELS else 1
        band = max(1, _MOST_PIXELS // (columns * factor)) * factor if factor > 1 else rows
        image = Image.new("RGB", (-(-columns // factor), -(-rows // factor)))
        for top in range(0, rows, band):
            at = (int(x), int(y) + round(top * downsample))
            region = self._region(at, level, (columns, min(band, rows - top)))
            image.paste(region.reduce(factor), (0, top // factor))
        return np.asarray(image.resize(size))

    def _region(self, at: tuple[int, int], level: int, size: tuple[int, int]) -> Image.Image:
        region = self._slide.read_region(at, level, size)
        white = Image.new("RGB", region.size, "white")
        white.paste(region, mask=region.getchannel("A"))
        return white


@contextmanager
def open_slide_images(path: str | Path) -> Iterator[SlideImages]:
    """Opens a slide for reading images; raises as `open_slide` does."""
    with open_slide(path) as slide:
        yield SlideImages(slide)
