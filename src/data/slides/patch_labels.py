"""Which patches lie in outlined regions, by a stated rule, and of which slides that is not known."""

from collections.abc import Collection, Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np

from src.data.slides.annotation_files import MASK_SUFFIXES, find_annotation, read_polygons
from src.data.slides.mask_regions import PANDA_VALUES, MaskRegions
from src.data.slides.regions import PolygonRegions, Regions
from src.data.slides.slide_files import find_slide, open_slide
from src.records import Item

RULES = ("center", "any", "half")
_KEPT = 4  # slides whose regions stay in memory: a slide is labelled, measured and drawn in turn


def label_patches(coords: np.ndarray, patch_size_level0: int, regions: Regions, rule: str | float) -> np.ndarray:
    """Labels patches by the regions.

    Args:
        coords: top-left corners in level-0 pixels, [n_patches, 2]; a patch may reach beyond the slide's edge.
        patch_size_level0: edge of a patch in level-0 pixels.
        regions: of the slide.
        rule: `center`: the patch's centre lies inside; `any`: any of it does; `half`: more than half of it does
            (torchmil's rule); a number: at least that share of it does.

    Returns:
        bool [n_patches].

    Raises:
        ValueError: when the rule is unknown.
    """
    if isinstance(rule, str) and rule not in RULES:
        raise ValueError(f"Expected localization.label_rule to be one of {RULES} or a share, got {rule!r}.")
    if rule == "center":
        return regions.contains(np.asarray(coords, dtype=np.float64) + patch_size_level0 / 2)
    covered = regions.coverage(coords, patch_size_level0)
    if isinstance(rule, str):
        return covered > (0.5 if rule == "half" else 0.0)
    return covered >= rule


class OutlinedSlides:
    """The regions of a dataset's slides as ground truth for patches.

    Args:
        annotations_dir: the folder of the files that `find_annotation` knows.
        positive_class: the class whose regions are outlined; slides of other classes have none, and need no file.
        label_rule: when a patch counts as inside, see `label_patches`.
        exclude: slides whose outlines are known to be incomplete.
        positive_groups: the groups of outlines that are regions; None: all but those that name an exclusion.
        providers: who made the mask of a slide, by id, which says what its values mean (`PANDA_VALUES`).
        slides_dir: where slides are whose masks have another resolution; None: masks have the slide's.
    """

    def __init__(
        self,
        annotations_dir: str | Path,
        positive_class: str,
        label_rule: str | float,
        exclude: Collection[str] = (),
        positive_groups: Collection[str] | None = None,
        providers: Mapping[str, str] | None = None,
        slides_dir: str | Path | None = None,
    ) -> None:
        self._folder = Path(annotations_dir)
        self._positive_class = positive_class
        self._label_rule = label_rule
        self._exclude = frozenset(exclude)
        self._positive_groups = None if positive_groups is None else frozenset(positive_groups)
        self._providers = providers or {}
        self._slides_dir = slides_dir
        self.regions = lru_cache(_KEPT)(self._regions)

    def why_unknown(self, slide: Item) -> str | None:
        """Returns why a slide's patches cannot be labelled: patches outside incomplete outlines are not negative."""
        if slide.item_id in self._exclude:
            return "its outlines are incomplete (localization.exclude_slides)"
        if slide.label in (None, self._positive_class) and self.regions(slide.item_id).bounds is None:
            found = find_annotation(self._folder, slide.item_id)
            where = self._folder / f"{slide.item_id}.xml" if found is None else found
            return f"it is {slide.label or 'unlabelled'} and has no outline at {where}"
        return None

    def label(self, slide_id: str, coords: np.ndarray, patch_size_level0: int) -> np.ndarray:
        """Returns which patches lie inside, bool [n_patches].

        Args:
            slide_id: the slide.
            coords: top-left corners in level-0 pixels, [n_patches, 2].
            patch_size_level0: edge of a patch in level-0 pixels.
        """
        return label_patches(coords, patch_size_level0, self.regions(slide_id), self._label_rule)

    def _regions(self, slide_id: str) -> Regions:
        """Returns the regions of a slide; none when it has no file."""
        path = find_annotation(self._folder, slide_id)
        if path is None:
            return PolygonRegions([])
        if path.name.endswith(MASK_SUFFIXES):
            return MaskRegions(path, self._mask_values(slide_id, path), self._size_level0(slide_id))
        polygons = read_polygons(path, slide_id)
        if self._positive_groups is not None:
            polygons = [one for one in polygons if one.is_exclusion or one.group in self._positive_groups]
        return PolygonRegions(polygons)

    def _mask_values(self, slide_id: str, path: Path) -> tuple[int, ...]:
        provider = self._providers.get(slide_id)
        if provider not in PANDA_VALUES:
            raise ValueError(
                f"Expected the provider of the mask {path} to be one of {list(PANDA_VALUES)}, got {provider!r}: its "
                "values mean other things by provider. Give localization.provider_column=<column of the csv>."
            )
        return PANDA_VALUES[provider]

    def _size_level0(self, slide_id: str) -> tuple[int, int] | None:
        if self._slides_dir is None:
            return None
        with open_slide(find_slide(self._slides_dir, slide_id)) as slide:
            return slide.dimensions
