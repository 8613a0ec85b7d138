"""Free-response ROC: which lesions are found, at how many false detections a slide (CAMELYON16's definition)."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage
from scipy.spatial import KDTree

from src.data.slides.regions import Regions

# Of CAMELYON16's evaluation (Evaluation_FROC.py of its organisers): outlines grow by half of 75 micrometres, about five
# tumour cells, so that lesions closer than that are one; what is then shorter than 275 micrometres are isolated tumour
# cells, neither found nor missed; the score is the mean sensitivity at these rates.
_MERGED_WITHIN, _ISOLATED_BELOW = 75.0, 275.0
FALSE_POSITIVE_RATES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
_CELL_MICRONS = 7.776  # level 5 of 0.243 micrometres a pixel, at which it is evaluated
_CELLS_PER_PATCH = 16  # where micrometres are not known
_MOST_CELLS = 1 << 26


@dataclass(frozen=True)
class Lesions:
    """The lesions of a slide on a grid.

    Attributes:
        numbers: int [height, width], the lesion of each cell from 1; 0: none.
        corner: level-0 (x, y) of the grid's first corner.
        cell: edge of a cell in level-0 pixels.
        is_isolated: bool [n_lesions], isolated tumour cells.
    """

    numbers: np.ndarray
    corner: np.ndarray
    cell: float
    is_isolated: np.ndarray

    def at(self, points: np.ndarray) -> np.ndarray:
        """Returns the lesion of each point [n, 2], 0 where there is none."""
        x, y = np.floor((points - self.corner) / self.cell).astype(int).T
        height, width = self.numbers.shape
        inside = (x >= 0) & (y >= 0) & (x < width) & (y < height)
        found = np.zeros(len(points), int)
        found[inside] = self.numbers[y[inside], x[inside]]
        return found


def find_lesions(regions: Regions, patch_size_level0: int, mpp: float | None = None) -> Lesions:
    """Returns the lesions of a slide: connected pieces of its regions.

    Args:
        regions: of the slide.
        patch_size_level0: edge of a patch in level-0 pixels.
        mpp: micrometres a level-0 pixel. None: regions do not grow, only those that touch are one lesion, and no lesion
            counts as isolated tumour cells, which differs from CAMELYON16's definition.
    """
    if regions.bounds is None:
        return Lesions(np.zeros((1, 1), int), np.zeros(2), 1.0, np.zeros(0, bool))
    low, high = regions.bounds
    cell = patch_size_level0 / _CELLS_PER_PATCH if mpp is None else _CELL_MICRONS / mpp
    margin = 0.0 if mpp is None else _MERGED_WITHIN / 2 / mpp
    corner = low - margin - 2 * cell
    extent = high - low + 2 * margin + 4 * cell
    cell = max(cell, float(np.sqrt(extent.prod() / _MOST_CELLS)))
    width, height = np.ceil(extent / cell).astype(int).tolist()
    mask = regions.raster(corner, cell, (height, width))
    if mpp is not None:
        distances: Any = ndimage.distance_transform_edt(~mask)
        mask = ndimage.binary_fill_holes(distances * cell < margin) if margin else mask
    labelled: Any = ndimage.label(mask, np.ones((3, 3)))
    numbers, n_lesions = labelled
    lengths = np.array([_major_axis(*np.nonzero(numbers[place] == number)) for number, place in
                        enumerate(ndimage.find_objects(numbers), start=1)])  # fmt: skip
    is_isolated = np.zeros(n_lesions, bool) if mpp is None else lengths * cell * mpp < _ISOLATED_BELOW
    return Lesions(numbers, corner, cell, is_isolated)


def _major_axis(rows: np.ndarray, columns: np.ndarray) -> float:
    """Returns the length of the longer axis of the ellipse with the cells' second moments, in cells."""
    # A cell is no point: its own second moment is 1/12.
    covariance = np.cov(np.stack([rows, columns]), bias=True) + np.eye(2) / 12
    return float(4 * np.sqrt(np.linalg.eigvalsh(covariance)[-1]))


def find_peaks(coords: np.ndarray, patch_size_level0: int, scores: np.ndarray) -> np.ndarray:
    """Returns the patches that no neighbour exceeds, as indices: the detections of a map of scores.

    Neighbours overlap or touch, also at a corner; of equal ones the first counts.

    Args:
        coords: top-left corners in level-0 pixels, [n_patches, 2].
        patch_size_level0: edge of a patch.
        scores: [n_patches].
    """
    pairs = KDTree(coords).query_pairs(1.01 * patch_size_level0, p=np.inf, output_type="ndarray")
    first, second = pairs.T  # first < second
    is_peak = np.ones(len(scores), bool)
    is_peak[np.where(scores[first] >= scores[second], second, first)] = False
    return np.flatnonzero(is_peak)


@dataclass(frozen=True)
class Detections:
    """What a method detects on all slides.

    Attributes:
        lesion_scores: the best detection in each lesion, -inf where it has none.
        lesion_slides: the slide of each lesion, from 0; isolated tumour cells are not among them.
        false_scores: the detections outside of every lesion.
        false_slides: their slides.
        n_slides: with and without lesions.
    """

    lesion_scores: np.ndarray
    lesion_slides: np.ndarray
    false_scores: np.ndarray
    false_slides: np.ndarray
    n_slides: int


def detect(slides: list[tuple[Lesions, np.ndarray, np.ndarray]]) -> Detections:
    """Sorts detections into lesions and false ones.

    Args:
        slides: of each, its lesions, and the level-0 centres [n, 2] and scores [n] of its detections.
    """
    parts: list[list[np.ndarray]] = [[], [], [], []]
    for slide, (lesions, points, scores) in enumerate(slides):
        hit = lesions.at(points)
        best = np.full(len(lesions.is_isolated) + 1, -np.inf)
        np.maximum.at(best, hit, scores)
        best = best[1:][~lesions.is_isolated]
        missed = scores[hit == 0]
        for part, values in zip(
            parts, (best, np.full(len(best), slide), missed, np.full(len(missed), slide)), strict=True
        ):
            part.append(values)
    hits, hit_slides, false, false_slides = (np.concatenate(part) for part in parts)
    return Detections(hits, hit_slides, false, false_slides, len(slides))


def froc_curve(detections: Detections) -> tuple[np.ndarray, np.ndarray]:
    """Returns false detections a slide and the share of lesions found, as the threshold falls."""
    weights = np.ones((1, detections.n_slides))
    rates, found = _curves(detections, weights)
    return rates[0], found[0]


def froc_scores(detections: Detections, weights: np.ndarray) -> np.ndarray:
    """Returns the mean sensitivity at `FALSE_POSITIVE_RATES`, NaN without lesions, [n_draws].

    Args:
        detections: of a method.
        weights: how often each slide was drawn, [n_draws, n_slides].
    """
    if not len(detections.lesion_scores):
        return np.full(len(weights), np.nan)
    rates, found = _curves(detections, weights)
    at = [np.where(rates <= rate, found, 0.0).max(axis=1, initial=0.0) for rate in FALSE_POSITIVE_RATES]
    return np.mean(at, axis=0)


def _curves(detections: Detections, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns false detections a slide and sensitivity at every threshold, [n_draws, n_thresholds]."""
    is_lesion = np.concatenate(
        [np.ones(len(detections.lesion_scores), bool), np.zeros(len(detections.false_scores), bool)]
    )
    scores = np.concatenate([detections.lesion_scores, detections.false_scores])
    slides = np.concatenate([detections.lesion_slides, detections.false_slides]).astype(int)
    order = np.argsort(-scores, kind="stable")
    # Beyond twice the largest rate nothing is read, whatever slides a bootstrap draws.
    n_false = np.cumsum(~is_lesion[order])
    order = order[n_false <= 4 * FALSE_POSITIVE_RATES[-1] * detections.n_slides + 1]
    order = order[np.isfinite(scores[order])]
    is_last_of_tie = np.append(np.diff(scores[order]) != 0, True)[: len(order)]
    drawn = weights[:, slides[order]]
    false = np.cumsum(drawn * ~is_lesion[order], axis=1)[:, is_last_of_tie]
    hits = np.cumsum(drawn * is_lesion[order], axis=1)[:, is_last_of_tie]
    n_lesions = weights[:, detections.lesion_slides.astype(int)].sum(axis=1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        return false / weights.sum(axis=1, keepdims=True), hits / n_lesions
