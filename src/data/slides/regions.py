"""Where the outlined regions of a slide are: one protocol for polygons and masks."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from PIL import Image, ImageDraw

from src.data.slides.annotations import Polygon

# Samples along a patch's edge. Coverage is then known to about 1/16 of a patch, finer than outlines are drawn.
_SAMPLES = 32
_PATCHES_PER_BLOCK = 64


class Regions(Protocol):
    """The regions of a slide; all coordinates are level-0 pixels, x right and y down."""

    @property
    def bounds(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Lowest and highest (x, y) of the regions; None where there is none."""
        ...

    def contains(self, points: np.ndarray) -> np.ndarray:
        """Returns which points [n, 2] lie inside, bool [n]."""
        ...

    def coverage(self, coords: np.ndarray, size: int) -> np.ndarray:
        """Returns the share [n] of each patch, given its top-left corner [n, 2] and its edge, that lies inside."""
        ...

    def raster(self, corner: np.ndarray, cell: float, shape: tuple[int, int]) -> np.ndarray:
        """Returns the inside as bool [height, width], cells of `cell` pixels from `corner`, judged at their centres."""
        ...

    def outlines(self) -> list[np.ndarray]:
        """Returns closed lines to draw, each [n_points, 2]."""
        ...


class PolygonRegions:
    """Regions given as polygons; exclusions are cut out after all others, whatever their order (CAMELYON16).

    Args:
        polygons: the outlines.
    """

    def __init__(self, polygons: Sequence[Polygon]) -> None:
        self._polygons = sorted(polygons, key=lambda polygon: polygon.is_exclusion)

    @property
    def bounds(self) -> tuple[np.ndarray, np.ndarray] | None:
        """See `Regions`."""
        included = [polygon.points for polygon in self._polygons if not polygon.is_exclusion]
        if not included:
            return None
        points = np.concatenate(included)
        return points.min(axis=0), points.max(axis=0)

    def contains(self, points: np.ndarray) -> np.ndarray:
        """See `Regions`: by the even-odd rule along a ray to the right."""
        inside = np.zeros(len(points), dtype=bool)
        for polygon in self._polygons:
            low, high = polygon.points.min(axis=0), polygon.points.max(axis=0)
            near = np.flatnonzero(((points >= low) & (points <= high)).all(axis=1))
            crossed = _even_odd(polygon.points, points[near])
            for hole in polygon.holes:
                crossed ^= _even_odd(hole, points[near])
            inside[near[crossed]] = not polygon.is_exclusion
        return inside

    def coverage(self, coords: np.ndarray, size: int) -> np.ndarray:
        """See `Regions`: on a grid of 32 x 32 samples a patch, to which corners are rounded."""
        covered = np.zeros(len(coords))
        if self.bounds is None:
            return covered
        corners = np.asarray(coords, dtype=np.float64)
        low, high = self.bounds
        near = np.flatnonzero(((corners + size > low) & (corners < high)).all(axis=1))
        if not len(near):
            return covered
        cell = size / _SAMPLES
        origin = corners[near].min(axis=0)
        # Block by block, so that memory is bounded whatever a slide's size; patches far from regions cost nothing.
        blocks, block_of = np.unique(
            (corners[near] - origin) // (_PATCHES_PER_BLOCK * size), axis=0, return_inverse=True
        )
        for number in range(len(blocks)):
            patches = near[block_of.ravel() == number]
            corner = corners[patches].min(axis=0)
            places = np.rint((corners[patches] - corner) / cell).astype(int)
            width, height = places.max(axis=0) + _SAMPLES
            sums = np.zeros((height + 1, width + 1), np.int32)
            inside = self.raster(corner, cell, (height, width))
            sums[1:, 1:] = inside.cumsum(axis=0, dtype=np.int32).cumsum(axis=1)
            x, y = places.T
            covered[patches] = (
                sums[y + _SAMPLES, x + _SAMPLES] - sums[y, x + _SAMPLES] - sums[y + _SAMPLES, x] + sums[y, x]
            ) / _SAMPLES**2
        return covered

    def raster(self, corner: np.ndarray, cell: float, shape: tuple[int, int]) -> np.ndarray:
        """See `Regions`."""
        mask = np.zeros(shape, dtype=bool)
        for polygon in self._polygons:
            # Pixel centres of an image lie at +0.5, hence the shift by half a cell.
            rings = [(ring - corner) / cell - 0.5 for ring in (polygon.points, *polygon.holes)]
            low = np.clip(np.floor(rings[0].min(axis=0)).astype(int), 0, (shape[1], shape[0]))
            high = np.clip(np.ceil(rings[0].max(axis=0)).astype(int) + 1, 0, (shape[1], shape[0]))
            if (high <= low).any():
                continue
            image = Image.new("1", tuple((high - low).tolist()))
            draw = ImageDraw.Draw(image)
            for number, ring in enumerate(rings):
                draw.polygon([(float(x), float(y)) for x, y in ring - low], fill=int(number == 0))
            part = mask[low[1] : high[1], low[0] : high[0]]
            part[np.asarray(image)] = not polygon.is_exclusion
        return mask

    def outlines(self) -> list[np.ndarray]:
        """See `Regions`; those of exclusions and holes too."""
        return [ring for polygon in self._polygons for ring in (polygon.points, *polygon.holes)]


def _even_odd(vertices: np.ndarray, points: np.ndarray) -> np.ndarray:
    crossings = np.zeros(len(points), dtype=bool)
    x, y = points[:, 0], points[:, 1]
    for (x1, y1), (x2, y2) in zip(vertices, np.roll(vertices, -1, axis=0), strict=True):
        if y1 == y2:
            continue
        spans = (y1 > y) != (y2 > y)
        crossings ^= spans & (x < x1 + (y - y1) * (x2 - x1) / (y2 - y1))
    return crossings
