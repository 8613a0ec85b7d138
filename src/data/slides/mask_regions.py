"""Regions given as a mask image, as PANDA has them."""

from pathlib import Path

import numpy as np

from src.data.slides.outlines import trace
from src.data.slides.slide_files import open_slide

PANDA_VALUES = {"radboud": (3, 4, 5), "karolinska": (2,)}
"""The mask values that are cancer, by `data_provider` of PANDA's train.csv. Radboud marks glands: 1 stroma, 2 benign
epithelium, 3 to 5 the Gleason pattern; Karolinska regions: 1 benign, 2 cancer. 0 is background or not known."""
_LONGEST_SIDE = 8192
_BAND_PIXELS = 1 << 24
_MOST_ASPECT_ERROR = 0.01


class MaskRegions:
    """Regions where a mask has one of some values; see `Regions`.

    The mask is read at the finest level whose longer side is at most 8,192 pixels, in bands.

    Args:
        path: an image that OpenSlide reads; its red channel holds the values.
        values: those that are inside.
        size_level0: width and height of the slide, which masks of another resolution are scaled to; None: the mask's.

    Raises:
        ValueError: when the mask has another shape than the slide.
    """

    def __init__(self, path: str | Path, values: tuple[int, ...], size_level0: tuple[int, int] | None = None) -> None:
        self._inside, size = _read(path, values)
        size_level0 = size_level0 or size
        ratios = np.array(size_level0) / size
        if abs(ratios[0] / ratios[1] - 1) > _MOST_ASPECT_ERROR:
            raise ValueError(
                f"Expected a mask of the slide's shape {size_level0} at {path}, got {size}: it is another slide's."
            )
        height, width = self._inside.shape
        self._scale = np.array(size_level0) / (width, height)
        self._sums = np.zeros((height + 1, width + 1), np.int64)
        self._sums[1:, 1:] = self._inside.cumsum(axis=0, dtype=np.int32).cumsum(axis=1, dtype=np.int64)

    @property
    def bounds(self) -> tuple[np.ndarray, np.ndarray] | None:
        """See `Regions`."""
        if not self._inside.any():
            return None
        places = [np.flatnonzero(self._inside.any(axis=axis)) for axis in (0, 1)]
        low, high = np.array([(place[0], place[-1] + 1) for place in places]).T
        return low * self._scale, high * self._scale

    def contains(self, points: np.ndarray) -> np.ndarray:
        """See `Regions`; what lies beyond the mask is outside."""
        cells = np.floor(np.asarray(points, np.float64) / self._scale).astype(int)
        height, width = self._inside.shape
        known = ((cells >= 0) & (cells < (width, height))).all(axis=1)
        inside = np.zeros(len(points), dtype=bool)
        x, y = cells[known].T
        inside[known] = self._inside[y, x]
        return inside

    def coverage(self, coords: np.ndarray, size: int) -> np.ndarray:
        """See `Regions`: edges are rounded to pixels of the mask; what lies beyond it counts as outside."""
        height, width = self._inside.shape
        corners = np.asarray(coords, np.float64)
        low = np.rint(corners / self._scale).astype(int)
        high = np.maximum(np.rint((corners + size) / self._scale).astype(int), low + 1)
        area = (high - low).prod(axis=1)
        (left, top), (right, bottom) = (np.clip(edge, 0, (width, height)).T for edge in (low, high))
        sums = self._sums
        return (sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]) / area

    def raster(self, corner: np.ndarray, cell: float, shape: tuple[int, int]) -> np.ndarray:
        """See `Regions`."""
        y, x = np.mgrid[: shape[0], : shape[1]]
        points = np.stack([x.ravel(), y.ravel()], axis=1) + 0.5
        return self.contains(points * cell + corner).reshape(shape)

    def outlines(self) -> list[np.ndarray]:
        """See `Regions`."""
        return [(border[:, 0] + 0.5) * self._scale for piece in trace(self._inside)
                for border in (piece.outline, *piece.holes)]  # fmt: skip


def _read(path: str | Path, values: tuple[int, ...]) -> tuple[np.ndarray, tuple[int, int]]:
    """Returns where a mask has some values, bool [height, width], and its size at level 0."""
    with open_slide(path) as slide:
        sides = [max(dimensions) for dimensions in slide.level_dimensions]
        level = next((number for number, side in enumerate(sides) if side <= _LONGEST_SIDE), len(sides) - 1)
        width, height = slide.level_dimensions[level]
        # A mask of one large level is thinned out: values are labels, of which there is no mean.
        step = -(-max(width, height) // _LONGEST_SIDE)
        downsample = slide.level_downsamples[level]  # such as 4.0003
        rows = max(step, _BAND_PIXELS // width // step * step)
        bands = []
        for top in range(0, height, rows):
            place = (0, round(top * downsample))
            band = slide.read_region(place, level, (width, min(rows, height - top)))
            bands.append(np.isin(np.asarray(band.getchannel("R"))[::step, ::step], values))
        return np.concatenate(bands), slide.dimensions
