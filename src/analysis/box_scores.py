"""How well the maps of neurons and channels find annotated boxes: pointing game, masks and contour boxes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from src.analysis.boxed_images import BoxedImage
from src.analysis.concept_maps import Grid, mask_levels, to_grid, to_pixels, token_centres
from src.analysis.mask_boxes import MIN_AREA, contains, contour_boxes, fill_boxes, mask_iou, match_boxes

RECALL_IOUS = (0.1, 0.2, 0.3, 0.4, 0.5)
# A larger image is scored at this size: finer than any grid of tokens, and quick.
_LONGEST_SIDE = 1024


@dataclass(frozen=True)
class MaskRule:
    """How maps become masks.

    Attributes:
        thresholds: of masks, see `mask_levels`.
        scale: `neuron`, `image` or `absolute`.
        interpolation: of maps, `bilinear` or `nearest`.
        min_area: smaller boxes around contours are left out, in square pixels.
    """

    thresholds: Sequence[float]
    scale: str = "neuron"
    interpolation: str = "bilinear"
    min_area: int = MIN_AREA


class BoxScores:
    """Adds up how well units (neurons or channels) find the boxes of labels, image by image.

    Args:
        labels: of the boxes.
        maxima: [n_units] each unit's maximum over the data set, see `mask_levels`.
        rule: how maps become masks.
    """

    def __init__(self, labels: Sequence[str], maxima: np.ndarray, rule: MaskRule) -> None:
        self._labels, self._maxima, self._rule = tuple(labels), maxima, rule
        shape = len(self._labels), len(rule.thresholds), len(maxima)
        self._hits = np.zeros((shape[0], shape[2]))
        self._mask_ious, self._n_predicted = np.zeros(shape), np.zeros(shape[1:])
        self._box_ious: dict[tuple[int, int, int], list[np.ndarray]] = {place: [] for place in np.ndindex(*shape)}
        self._n_images, self._n_boxes, self._area = (np.zeros(shape[0]) for _ in range(3))
        self._n_seen = 0

    def add(self, values: np.ndarray, grid: Grid, image: BoxedImage) -> None:
        """Adds an image.

        Args:
            values: [n_tokens, n_units] of its tokens.
            grid: of the tokens.
            image: its size and boxes.
        """
        image = image.scaled(_LONGEST_SIDE)
        coarse = to_grid(values, grid)
        maps = to_pixels(coarse, image.height, image.width, image.window, self._rule.interpolation)
        levels = mask_levels(np.asarray(self._rule.thresholds), self._rule.scale, maps, self._maxima)
        present = [label for label, name in enumerate(self._labels) if len(image.boxes.get(name, ()))]
        true = {label: image.boxes[self._labels[label]] for label in present}
        filled = {label: fill_boxes(boxes, image.height, image.width) for label, boxes in true.items()}
        centres = token_centres(grid, image.height, image.width, image.window)
        flat = coarse.reshape(len(coarse), -1)
        fires = flat.max(axis=1) > flat.min(axis=1)  # a map that is the same everywhere points nowhere
        for label, boxes in true.items():
            self._n_images[label] += 1
            self._n_boxes[label] += len(boxes)
            self._area[label] += filled[label].mean()
            inside = [contains(boxes, centres[place]) for place in flat.argmax(axis=1)]
            self._hits[label] += fires & inside
        for number, unit in np.ndindex(*levels.shape):
            mask = maps[unit] > levels[number, unit]
            predicted = contour_boxes(mask, self._rule.min_area)
            self._n_predicted[number, unit] += len(predicted)
            for label, boxes in true.items():
                self._mask_ious[label, number, unit] += mask_iou(mask, filled[label])
                self._box_ious[label, number, unit].append(match_boxes(boxes, predicted))
        self._n_seen += 1

    def table(self) -> pd.DataFrame:
        """Returns a row a label, threshold and unit, of the images that hold a box of the label.

        Returns:
            label, threshold, unit (its number), pointing_accuracy (share of images whose strongest token's centre lies
            in a box), chance_pointing (mean share of the image's area in boxes), mask_iou (mean over images), box_iou
            (mean over boxes, matched one to one), recall_at_0.1 to recall_at_0.5 (share of boxes with at least that
            IoU), n_predicted (boxes predicted an image, over all images), n_images, n_boxes.
        """
        rows = []
        for (label, number, unit), found in self._box_ious.items():
            if not self._n_images[label]:
                continue
            n_images, ious = self._n_images[label], np.concatenate(found)
            row = {
                "label": self._labels[label],
                "threshold": self._rule.thresholds[number],
                "unit": unit,
                "pointing_accuracy": self._hits[label, unit] / n_images,
                "chance_pointing": self._area[label] / n_images,
                "mask_iou": self._mask_ious[label, number, unit] / n_images,
                "box_iou": ious.mean(),
            }
            row |= {f"recall_at_{iou:g}": (ious >= iou).mean() for iou in RECALL_IOUS}
            row |= {"n_predicted": self._n_predicted[number, unit] / self._n_seen}
            rows.append(row | {"n_images": int(n_images), "n_boxes": len(ious)})
        return pd.DataFrame(rows)
