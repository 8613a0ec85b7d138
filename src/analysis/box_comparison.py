"""The best neuron for what boxes mark, chosen on train images and scored on test images, and what it is held against.

It is held against the best raw activation channel, chosen in the same way, and against neurons drawn at random.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from src.analysis.box_scores import BoxScores, MaskRule
from src.analysis.box_search import TokenCoverage, maxima_of, token_ious
from src.analysis.boxed_images import BoxedImage
from src.analysis.concept_maps import Grid, cover_tokens
from src.analysis.mask_boxes import fill_boxes
from src.ops.sparse_latents import SparseLatents

NEURON, CHANNEL, RANDOM = "neuron", "channel", "random neurons"
BY_IMAGE_LABEL, BY_BOXES, SHOWN, AT_RANDOM = "image label", "train boxes", "shown", "at random"


@dataclass(frozen=True)
class Units:
    """Neurons, or raw channels.

    Attributes:
        kind: `neuron` or `channel`.
        pieces: gives the rows of items in the order given, in pieces.
        item: gives some units' values [n_tokens, n] of an item.
    """

    kind: str
    pieces: Callable[[Sequence[str]], Iterable[SparseLatents | np.ndarray]]
    item: Callable[[str, Sequence[int]], np.ndarray]


@dataclass(frozen=True)
class Searched:
    """What the train boxes say of units.

    Attributes:
        units: what was searched.
        maxima: [n_units] each unit's maximum over the train images.
        ious: [n_labels, n_thresholds, n_units], see `token_ious`.
    """

    units: Units
    maxima: np.ndarray
    ious: np.ndarray

    def best(self, label: int) -> tuple[int, int]:
        """Returns number of the threshold and unit with the largest IoU for a label; ties by the smaller."""
        number, unit = np.unravel_index(self.ious[label].argmax(), self.ious[label].shape)
        return int(number), int(unit)


def cover(images: Mapping[str, BoxedImage], labels: Sequence[str], grid: Grid) -> TokenCoverage:
    """Returns how much of the tokens of images lies in the boxes of each label, in the order of the images."""
    shares = np.zeros((len(labels), len(images), grid.n_tokens))
    for place, image in enumerate(images.values()):
        for label, name in enumerate(labels):
            if len(boxes := image.boxes.get(name, ())):
                mask = fill_boxes(np.asarray(boxes), image.height, image.width)
                shares[label, place, grid.n_prefix :] = cover_tokens(mask, grid, image.window)
    counted = np.tile(np.arange(grid.n_tokens) >= grid.n_prefix, len(images))
    return TokenCoverage(tuple(labels), shares.reshape(len(labels), -1), counted)


def search(units: Units, item_ids: Sequence[str], coverage: TokenCoverage, rule: MaskRule) -> Searched:
    """Holds all units against the boxes of train images.

    Thresholds are shares of a unit's maximum; with the scale `absolute` they are values. With `image` they are taken
    as shares of the unit's maximum here, and of the image's when the chosen units are scored.
    """
    maxima = maxima_of(lambda: units.pieces(item_ids))
    of_units = np.ones_like(maxima) if rule.scale == "absolute" else np.maximum(maxima, 0)
    levels = np.asarray(rule.thresholds, np.float32)[:, None] * of_units
    return Searched(units, maxima, token_ious(lambda: units.pieces(item_ids), levels, coverage))


def choose(
    neurons: Searched,
    channels: Searched,
    labels: Sequence[str],
    by_image_label: Mapping[str, tuple[int, int]],
    shown: Sequence[int],
    n_random: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Returns who is scored: dictionaries of label, chosen_by, kind, unit_id, and threshold (its number; None: all).

    Args:
        neurons: as searched on train images.
        channels: likewise.
        labels: of the boxes.
        by_image_label: best neuron and channel by the image label, of the labels of boxes that it is about.
        shown: further neurons to score.
        n_random: neurons to draw among those active on train images.
        seed: of the draw.
    """
    found = []
    for label, name in enumerate(labels):
        if name in by_image_label:
            for searched, unit in zip((neurons, channels), by_image_label[name], strict=True):
                found.append(_contender(name, BY_IMAGE_LABEL, searched.units.kind, unit, None))
        for searched in (neurons, channels):
            number, unit = searched.best(label)
            found.append(_contender(name, BY_BOXES, searched.units.kind, unit, number))
    found += [_contender(name, SHOWN, NEURON, unit, None) for name in labels for unit in shown]
    taken = {one["unit_id"] for one in found if one["kind"] == NEURON}
    active = np.setdiff1d(np.flatnonzero(neurons.maxima > 0), list(taken))
    drawn = np.random.default_rng(seed).choice(active, min(n_random, len(active)), replace=False)
    found += [_contender(name, AT_RANDOM, NEURON, int(unit), None) for name in labels for unit in np.sort(drawn)]
    return found


def score(
    contenders: Sequence[Mapping[str, Any]],
    searched: Sequence[Searched],
    images: Mapping[str, BoxedImage],
    grid: Grid,
    labels: Sequence[str],
    rule: MaskRule,
) -> pd.DataFrame:
    """Scores contenders on images that they were not chosen on.

    Returns:
        A row a contender and threshold: label, chosen_by, kind, unit_id, threshold, and the columns of
        `BoxScores.table`; neurons drawn at random are one row, their mean.
    """
    tables = []
    for one in searched:
        mine = [contender for contender in contenders if contender["kind"] == one.units.kind]
        unit_ids = sorted({contender["unit_id"] for contender in mine})
        scores = BoxScores(labels, one.maxima[unit_ids], rule)
        for item_id, image in images.items():
            scores.add(one.units.item(item_id, unit_ids), grid, image)
        table = scores.table()
        table["unit_id"] = np.array(unit_ids)[table["unit"]]
        for contender in mine:
            rows = table[(table["label"] == contender["label"]) & (table["unit_id"] == contender["unit_id"])]
            if contender["threshold"] is not None:
                rows = rows[rows["threshold"] == rule.thresholds[contender["threshold"]]]
            named = rows.drop(columns=["unit", "unit_id", "label"])
            named = named.assign(**{name: contender[name] for name in ("label", "chosen_by", "kind", "unit_id")})
            tables.append(named)
    table = pd.concat(tables, ignore_index=True)
    first = ["label", "chosen_by", "kind", "unit_id", "threshold"]
    table = table[[*first, *(name for name in table if name not in first)]]
    at_random = table["chosen_by"] == AT_RANDOM
    mean: Any = table[at_random].drop(columns="unit_id").groupby(["label", "chosen_by", "kind", "threshold"])
    mean = mean.mean().reset_index().assign(kind=RANDOM)
    return pd.concat([table[~at_random], mean], ignore_index=True).astype({"unit_id": "Int64"})


def _contender(label: str, chosen_by: str, kind: str, unit_id: int, threshold: int | None) -> dict[str, Any]:
    return {"label": label, "chosen_by": chosen_by, "kind": kind, "unit_id": unit_id, "threshold": threshold}
