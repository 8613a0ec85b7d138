"""Which patches lie in outlined regions, by a stated rule, and of which slides that is not known."""

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from src.data.slides.annotations import Polygon, read_asap_xml
from src.records import Item

# Samples along a patch's edge. Coverage is then known to about 1/32 of a patch, far finer than outlines are drawn.
_SAMPLES = 32
RULES = ("center", "any", "half")


def label_patches(
    coords: np.ndarray, patch_size_level0: int, polygons: Sequence[Polygon], rule: str = "center"
) -> np.ndarray:
    """Labels patches by the outlines.

    Args:
        coords: top-left corners in level-0 pixels, [n_patches, 2].
        patch_size_level0: edge of a patch in level-0 pixels.
        polygons: the outlines; exclusions are cut out after all inclusions, whatever their order (CAMELYON16).
        rule: `center`: the patch's centre lies inside; `any`: any of it does; `half`: more than half of it does
            (torchmil's rule).

    Returns:
        bool [n_patches].

    Raises:
        ValueError: when the rule is unknown.
    """
    if rule not in RULES:
        raise ValueError(f"Expected localization.label_rule to be one of {RULES}, got {rule!r}.")
    if rule == "center":
        return _contains(polygons, np.asarray(coords, dtype=np.float64) + patch_size_level0 / 2)
    covered = coverage(coords, patch_size_level0, polygons)
    return covered > (0.5 if rule == "half" else 0.0)


def coverage(coords: np.ndarray, patch_size_level0: int, polygons: Sequence[Polygon]) -> np.ndarray:
    """Returns the share of each patch that lies inside, [n_patches] float64, on a grid of 32 x 32 samples a patch."""
    covered = np.zeros(len(coords))
    if not polygons:
        return covered
    corners = np.asarray(coords, dtype=np.float64)
    for index in np.flatnonzero(_may_touch(corners, patch_size_level0, polygons)):
        mask = np.zeros((_SAMPLES, _SAMPLES), dtype=bool)
        # Pixel centres of the raster lie at +0.5, hence the half-sample shift.
        scale = _SAMPLES / patch_size_level0
        for polygon in sorted(polygons, key=lambda polygon: polygon.is_exclusion):
            local = (polygon.points - corners[index]) * scale - 0.5
            mask[_raster(local)] = not polygon.is_exclusion
        covered[index] = mask.mean()
    return covered


def _raster(points: np.ndarray) -> np.ndarray:
    image = Image.new("1", (_SAMPLES, _SAMPLES))
    ImageDraw.Draw(image).polygon([(float(x), float(y)) for x, y in points], fill=1)
    return np.asarray(image)


def _may_touch(corners: np.ndarray, size: int, polygons: Sequence[Polygon]) -> np.ndarray:
    """Whether a patch meets the bounding box of any included region: most do not, and cost nothing."""
    touched = np.zeros(len(corners), dtype=bool)
    for polygon in polygons:
        if not polygon.is_exclusion:
            low, high = polygon.points.min(axis=0), polygon.points.max(axis=0)
            touched |= ((corners + size > low) & (corners < high)).all(axis=1)
    return touched


def _contains(polygons: Sequence[Polygon], points: np.ndarray) -> np.ndarray:
    """Whether points [n, 2] lie inside, by the even-odd rule along a ray to the right; exclusions cut out."""
    inside = np.zeros(len(points), dtype=bool)
    for polygon in sorted(polygons, key=lambda polygon: polygon.is_exclusion):
        inside[_even_odd(polygon.points, points)] = not polygon.is_exclusion
    return inside


def _even_odd(vertices: np.ndarray, points: np.ndarray) -> np.ndarray:
    crossings = np.zeros(len(points), dtype=bool)
    x, y = points[:, 0], points[:, 1]
    for (x1, y1), (x2, y2) in zip(vertices, np.roll(vertices, -1, axis=0), strict=True):
        if y1 == y2:
            continue
        spans = (y1 > y) != (y2 > y)
        crossings ^= spans & (x < x1 + (y - y1) * (x2 - x1) / (y2 - y1))
    return crossings


class OutlinedSlides:
    """The outlines of a dataset's slides, `<annotations_dir>/<slide_id>.xml`, as ground truth for patches.

    Args:
        annotations_dir: the folder of ASAP XML files.
        positive_class: the class whose regions are outlined; slides of other classes have none, and need no file.
        label_rule: when a patch counts as inside, see `label_patches`.
        exclude: slides whose outlines are known to be incomplete.
    """

    def __init__(
        self, annotations_dir: str | Path, positive_class: str, label_rule: str, exclude: Collection[str] = ()
    ) -> None:
        self._folder = Path(annotations_dir)
        self._positive_class = positive_class
        self._label_rule = label_rule
        self._exclude = frozenset(exclude)

    def why_unknown(self, slide: Item) -> str | None:
        """Returns why a slide's patches cannot be labelled: patches outside incomplete outlines are not negative."""
        if slide.item_id in self._exclude:
            return "its outlines are incomplete (localization.exclude_slides)"
        if slide.label in (None, self._positive_class) and not self._has_region(slide.item_id):
            return f"it is {slide.label or 'unlabelled'} and has no outline at {self._path(slide.item_id)}"
        return None

    def outlines(self, slide_id: str) -> list[Polygon]:
        """Returns the polygons of a slide, exclusions too; none when it has no file."""
        path = self._path(slide_id)
        return read_asap_xml(path) if path.is_file() else []

    def label(self, slide_id: str, coords: np.ndarray, patch_size_level0: int) -> np.ndarray:
        """Returns which patches lie inside, bool [n_patches].

        Args:
            slide_id: the slide.
            coords: top-left corners in level-0 pixels, [n_patches, 2].
            patch_size_level0: edge of a patch in level-0 pixels.
        """
        return label_patches(coords, patch_size_level0, self.outlines(slide_id), self._label_rule)

    def _has_region(self, slide_id: str) -> bool:
        return any(not polygon.is_exclusion for polygon in self.outlines(slide_id))

    def _path(self, slide_id: str) -> Path:
        return self._folder / f"{slide_id}.xml"
