"""Heatmaps and masks of many neurons on many images, as files, with tiles for contact sheets."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from src.analysis.box_scores import MaskRule
from src.analysis.boxed_images import SeenWindow
from src.analysis.concept_maps import Grid, mask_levels, to_grid, to_pixels
from src.analysis.contact_sheet import Tile
from src.analysis.mask_boxes import contour_boxes
from src.analysis.neuron_pictures import draw_heatmap, draw_mask, encode_png, outline_boxes, outline_mask, shrink
from src.files import write_atomically
from src.models.backbones.preprocessing import Window

_TILE_SIDE = 176
_UNSAFE = re.compile(r"[/\\\x00]")
RESULTS_FILE = "all_results.json"


@dataclass(frozen=True)
class Subject:
    """An image to draw.

    Attributes:
        item_id: of the image.
        label: its class, for the folder's name.
        neuron_ids: the neurons to draw on it.
        values: [n_tokens, n_neurons] of the image's tokens.
        boxes: [n, 4] annotated boxes in pixels, drawn on tiles.
        is_written: whether its pictures become files.
        on_sheets: the neurons for whose contact sheet it is drawn.
    """

    item_id: str
    label: str
    neuron_ids: Sequence[int]
    values: np.ndarray
    boxes: np.ndarray = field(default_factory=lambda: np.empty((0, 4)))
    is_written: bool = False
    on_sheets: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Drawn:
    """What was drawn of a subject: its entry in `all_results.json` by threshold and neuron, and tiles by neuron."""

    subject: Subject
    results: Mapping[float, Mapping[str, Any]]
    tiles: Mapping[int, Tile]


@dataclass(frozen=True)
class Gallery:
    """Draws images into a folder, in the layout of the HAM10000 guide.

    `visuals_mask_th=<t>/class=<c>/image_id=<id>/` holds `original_image.png` and for each neuron
    `neuron=<n>_heatmap.png` and `neuron=<n>_heatmap_with_mask.png`.

    Attributes:
        folder: the run's.
        rule: how maps become masks; the first threshold is that of contact sheets.
        maxima: of each neuron over the data set.
        grid: of the images' tokens.
        window: see `SeenWindow`.
        longest: no side of a picture is longer, in pixels.
    """

    folder: Path
    rule: MaskRule
    maxima: Mapping[int, float]
    grid: Grid
    window: SeenWindow
    longest: int

    def draw(self, image: np.ndarray, subject: Subject) -> Drawn:
        """Draws a subject on its image, RGB uint8 [H, W, 3]; safe in threads, where each has its own subject."""
        seen = self.window(*image.shape[:2])
        results = self._write(image, subject, seen) if subject.is_written else {}
        return Drawn(subject, results, self._tiles(image, subject, seen))

    def place(self, threshold: float, subject: Subject) -> Path:
        """Returns the folder of a subject's pictures."""
        label, item_id = (_UNSAFE.sub("_", name) for name in (subject.label, subject.item_id))
        return self._of_threshold(threshold) / f"class={label}" / f"image_id={item_id}"

    def write_results(self, drawn: Sequence[Drawn]) -> None:
        """Writes `visuals_mask_th=<t>/all_results.json`: by class, image and neuron what is on the pictures."""
        for threshold in self.rule.thresholds:
            content: dict[str, dict[str, Any]] = {}
            for one in drawn:
                if one.subject.is_written:
                    content.setdefault(one.subject.label, {})[one.subject.item_id] = one.results[threshold]
            with write_atomically(self._of_threshold(threshold) / RESULTS_FILE) as temporary:
                temporary.write_text(json.dumps(content, indent=1) + "\n")

    def _of_threshold(self, threshold: float) -> Path:
        return self.folder / f"visuals_mask_th={threshold:g}"

    def _write(self, image: np.ndarray, subject: Subject, seen: Window) -> dict[float, dict[str, Any]]:
        small = shrink(image, self.longest)
        folders = {threshold: self.place(threshold, subject) for threshold in self.rule.thresholds}
        original = encode_png(small)
        for folder in folders.values():
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "original_image.png").write_bytes(original)
        maps, levels, strengths = self._maps(small, subject, seen, subject.neuron_ids)
        pixel = image.shape[1] / small.shape[1], image.shape[0] / small.shape[0]
        means, largest = subject.values.mean(axis=0), subject.values.max(axis=0)
        results: dict[float, dict[str, Any]] = {threshold: {} for threshold in self.rule.thresholds}
        for number, neuron_id in enumerate(subject.neuron_ids):
            heatmap = draw_heatmap(small, strengths[number])
            encoded = encode_png(heatmap)
            for (threshold, folder), level in zip(folders.items(), levels[:, number], strict=True):
                mask = maps[number] > level
                masked = encode_png(draw_mask(small, heatmap, mask))
                (folder / f"neuron={neuron_id}_heatmap.png").write_bytes(encoded)
                (folder / f"neuron={neuron_id}_heatmap_with_mask.png").write_bytes(masked)
                boxes = contour_boxes(mask, self.rule.min_area) * np.array([*pixel, *pixel])
                results[threshold][str(neuron_id)] = {
                    "mean_activation": float(means[number]),
                    "max_activation": float(largest[number]),
                    "mask_share": float(mask.mean()),
                    "boxes": boxes.round(1).tolist(),
                }
        return results

    def _tiles(self, image: np.ndarray, subject: Subject, seen: Window) -> dict[int, Tile]:
        neuron_ids = [neuron_id for neuron_id in subject.neuron_ids if neuron_id in subject.on_sheets]
        if not neuron_ids:
            return {}
        small = shrink(image, _TILE_SIDE)
        boxes = subject.boxes * (small.shape[1] / image.shape[1])
        pixels = outline_boxes(small, boxes)
        maps, levels, strengths = self._maps(small, subject, seen, neuron_ids)
        tiles = {}
        for number, neuron_id in enumerate(neuron_ids):
            heatmap = outline_mask(draw_heatmap(small, strengths[number]), maps[number] > levels[0, number])
            largest = subject.values[:, subject.neuron_ids.index(neuron_id)].max()
            tiles[neuron_id] = Tile(pixels, heatmap, f"{largest:.3g}  {subject.item_id}")
        return tiles

    def _maps(
        self, small: np.ndarray, subject: Subject, seen: Window, neuron_ids: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns maps [n, H, W], levels of masks [n_thresholds, n], and the maps from 0 to 1 for colours."""
        columns = [subject.neuron_ids.index(neuron_id) for neuron_id in neuron_ids]
        coarse = to_grid(subject.values[:, columns], self.grid)
        height, width = small.shape[:2]
        maps = to_pixels(coarse, height, width, seen, self.rule.interpolation)
        maxima = np.array([self.maxima[neuron_id] for neuron_id in neuron_ids])
        levels = mask_levels(np.asarray(self.rule.thresholds), self.rule.scale, maps, maxima)
        darkest = maps.max(axis=(1, 2)) if self.rule.scale == "image" else maxima
        darkest = np.where(darkest > 0, darkest, 1).astype(np.float32)
        return maps, levels, np.clip(maps / darkest[:, None, None], 0, 1)
