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
    by_image_label: Mapping[str, Mapping[str, int]],
    shown: Sequence[int],
    rule: MaskRule,
    n_random: int,
    seed: int,
) -> pd.DataFrame:
    """Returns who is scored, a row each: label, chosen_by, kind, unit_id, and chosen_threshold (NaN: all thresholds).

    Args:
        neurons: as searched on train images.
        channels: likewise.
        labels: of the boxes.
        by_image_label: the best unit of each kind by the image label, of the labels of boxes that it is about; a kind
            that is missing there was not ranked, and is left out.
        shown: further neurons to score.
        rule: that of the search.
        n_random: neurons to draw among those that are active on train images and not among the best.
        seed: of the draw.
    """
    rows: list[tuple[str, str, str, int, float]] = []
    for label, name in enumerate(labels):
        ranked = by_image_label.get(name, {})
        for searched in (neurons, channels):
            kind = searched.units.kind
            if kind in ranked:
                rows.append((name, BY_IMAGE_LABEL, kind, ranked[kind], np.nan))
            number, unit = searched.best(label)
            rows.append((name, BY_BOXES, kind, unit, rule.thresholds[number]))
    best = [unit for _, _, kind, unit, _ in rows if kind == NEURON]
    active = np.setdiff1d(np.flatnonzero(neurons.maxima > 0), best)
    drawn = np.sort(np.random.default_rng(seed).choice(active, min(n_random, len(active)), replace=False)).tolist()
    for name in labels:
        rows += [(name, SHOWN, NEURON, unit, np.nan) for unit in shown]
        rows += [(name, AT_RANDOM, NEURON, unit, np.nan) for unit in drawn]
    return pd.DataFrame(rows, columns=["label", "chosen_by", "kind", "unit_id", "chosen_threshold"])


def score(
    contenders: pd.DataFrame,
    searched: Sequence[Searched],
    images: Mapping[str, BoxedImage],
    grid: Grid,
    labels: Sequence[str],
    rule: MaskRule,
) -> pd.DataFrame:
    """Scores contenders on images that they were not chosen on.

    Returns:
        A row a contender and threshold: label, chosen_by, kind, unit_id, threshold, and the columns of
        `BoxScores.table`; neurons drawn at random are one row, their mean, without a unit_id.
    """
    tables = []
    for one in searched:
        unit_ids = np.unique(contenders.loc[contenders["kind"] == one.units.kind, "unit_id"])
        scores = BoxScores(labels, one.maxima[unit_ids], rule)
        for item_id, image in images.items():
            scores.add(one.units.item(item_id, unit_ids.tolist()), grid, image)
        table = scores.table()
        tables.append(table.assign(kind=one.units.kind, unit_id=unit_ids[table.pop("unit")]))
    found: Any = contenders.merge(pd.concat(tables), on=["label", "kind", "unit_id"])
    chosen = found.pop("chosen_threshold")
    found = found[chosen.isna() | (chosen == found["threshold"])]
    is_random = found["chosen_by"] == AT_RANDOM
    drawn = found[is_random].assign(kind=RANDOM)
    mean = drawn.groupby(["label", "chosen_by", "kind", "threshold"], as_index=False).mean().assign(unit_id=pd.NA)
    counts = {"unit_id": "Int64", "n_images": int, "n_boxes": int}
    return pd.concat([found[~is_random].astype(counts), mean.astype(counts)], ignore_index=True)
