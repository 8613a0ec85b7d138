"""Slides with known outlines: which patches lie inside, and of which slides that is not known."""

from collections.abc import Collection
from pathlib import Path

import numpy as np

from src.data.slides.annotations import Polygon, read_asap_xml
from src.data.slides.patch_labels import label_patches
from src.records import Item


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
