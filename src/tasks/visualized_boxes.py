"""The part of task=visualize that holds neurons against annotated boxes."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from src.analysis.box_comparison import (
    AT_RANDOM,
    BY_BOXES,
    BY_IMAGE_LABEL,
    CHANNEL,
    NEURON,
    RANDOM,
    SHOWN,
    Searched,
    Units,
    choose,
    cover,
    score,
    search,
)
from src.analysis.box_scores import MaskRule
from src.analysis.boxed_images import BoxedImage, ImageSet
from src.analysis.concept_maps import Grid
from src.analysis.selection import best_neuron_ids
from src.data.fold import FoldData
from src.data.images.boxes import BOXES_FILE
from src.runs.rundir import RunDir
from src.stores.latents.source import LatentSource

_LOGGER = logging.getLogger(__name__)
_METRICS = ("pointing_accuracy", "mask_iou", "box_iou")
# Where at least so many of the train images hold a thing, whether an image holds it tells next to nothing.
_NEARLY_ALL = 0.95
_CHANNEL_ROWS = 8192


def boxes_file(cfg: Any) -> Path:
    """Returns where the boxes of the data set's images lie, if it has any."""
    return Path(cfg.dataset.metadata_csv).with_name(BOXES_FILE)


def compare_boxes(
    cfg: Any,
    rundir: RunDir,
    fold: FoldData,
    latents: LatentSource,
    shown: Sequence[int],
    grid: Grid,
    rule: MaskRule,
    images: ImageSet,
) -> tuple[dict[str, float], list[str]]:
    """Writes `analysis/boxes.csv` and `analysis/box_search.csv`.

    Args:
        cfg: the configuration.
        rundir: of the task.
        fold: the fold; units are chosen on its train images, and scored on its test images.
        latents: of its items.
        shown: the neurons that are drawn; they are scored too.
        grid: of the images' tokens.
        rule: how maps become masks.
        images: with their boxes.

    Returns:
        `test/<label>/<kind>_<metric>` of the neuron, the channel and the random neurons, and paragraphs for the page.
    """
    train = sorted(fold.split.train, key=lambda item_id: latents.items[item_id].start)
    test = list(fold.split.test)
    labels = sorted({label for item_id in train for label in images.labels(item_id)})
    if not labels or not test:
        reason = "Boxes were not used: there are none on train images, or no test images to score on."
        _LOGGER.warning(reason)
        return {}, [reason]
    boxed = images.read_boxed(item_id for item_id in train if images.labels(item_id))
    coverage = cover({item_id: boxed.get(item_id, BoxedImage(1, 1)) for item_id in train}, labels, grid)
    units = [_neurons(latents), _channels(fold)]
    neurons, channels = (search(one, train, coverage, rule) for one in units)
    target = cfg.visualize.target_box or (labels[0] if len(labels) == 1 else None)
    if target is not None and target not in labels:
        raise ValueError(f"Expected visualize.target_box to be a label of boxes ({', '.join(labels)}), got {target!r}.")
    by_label = {} if target is None else {target: _best_by_image_label(cfg, rundir, fold)}
    contenders = choose(neurons, channels, labels, by_label, shown, rule, cfg.visualize.n_random, cfg.seed)
    table = score(contenders, [neurons, channels], images.read_boxed(test), grid, labels, rule)

    caption = "Against the boxes of test images; chosen on train images."
    columns = ["label", "chosen_by", "kind", "unit_id", "threshold", *_METRICS, "recall_at_0.1", "recall_at_0.3"]
    main = table[table["chosen_by"] != SHOWN]
    rundir.add_table("boxes", main, caption, 40, [*columns, "recall_at_0.5", "n_predicted", "n_images", "n_boxes"])
    others = table[table["chosen_by"] == SHOWN]
    rundir.add_table("boxes_of_shown", others, "The same of the neurons that are drawn.", 0)
    rundir.add_table("box_search", _found(neurons, channels, labels, rule), "IoU of all units on train images.", 0)
    held = {label: sum(label in images.labels(item_id) for item_id in train) for label in labels}
    results = {}
    for label in labels:
        results |= _headline(table, label, BY_IMAGE_LABEL if label in by_label else BY_BOXES)
    return results, [_about(label, held[label], len(train), by_label.get(label)) for label in labels]


def _neurons(latents: LatentSource) -> Units:
    return Units(
        NEURON,
        lambda item_ids: (rows for _, rows in latents.read(item_ids)),
        lambda item_id, unit_ids: latents.rows(item_id).columns(list(unit_ids)).numpy(),
    )


def _channels(fold: FoldData) -> Units:
    def pieces(item_ids: Sequence[str]) -> Iterator[np.ndarray]:
        rows = fold.store.row_ids(item_ids)
        for start in range(0, len(rows), _CHANNEL_ROWS):
            yield fold.store.gather(rows[start : start + _CHANNEL_ROWS])

    return Units(CHANNEL, pieces, lambda item_id, unit_ids: np.asarray(fold.store.rows(item_id)[:, list(unit_ids)]))


def _best_by_image_label(cfg: Any, rundir: RunDir, fold: FoldData) -> dict[str, int]:
    """Returns the best neuron by the labels of train images, and the best channel where the ranking holds channels."""
    ranking = rundir.trusted_upstream("select_neurons", fold.fitted("val+test"))
    found = {}
    for kind, name in ((NEURON, "neurons"), (CHANNEL, "channels")):
        path = ranking.table(name)
        if kind == CHANNEL and not path.is_file():  # selection.channels=false
            continue
        table: Any = pd.read_csv(path, dtype={"class": str})
        if "class" in table and cfg.dataset.positive_class is not None:
            table = table[table["class"] == cfg.dataset.positive_class]
        found[kind] = best_neuron_ids(table, 1)[0]
    return found


def _found(neurons: Searched, channels: Searched, labels: Sequence[str], rule: MaskRule) -> pd.DataFrame:
    """Returns a row a unit and label: its best threshold and IoU on the tokens of train images, best first."""
    tables = []
    for searched in (neurons, channels):
        for label, ious in zip(labels, searched.ious, strict=True):
            thresholds = np.array(rule.thresholds)[ious.argmax(axis=0)]
            columns = {"unit_id": np.arange(len(thresholds)), "threshold": thresholds, "token_iou": ious.max(axis=0)}
            tables.append(pd.DataFrame({"label": label, "kind": searched.units.kind, **columns}))
    table = pd.concat(tables, ignore_index=True)
    return table.sort_values(["label", "kind", "token_iou"], ascending=[True, True, False], kind="stable")


def _headline(table: pd.DataFrame, label: str, chosen_by: str) -> dict[str, float]:
    """Returns the results of a label; of what is scored at every threshold those at the first."""
    rows: Any = table[table["label"] == label]
    results = {}
    for kind in (NEURON, CHANNEL, RANDOM):
        of_kind: Any = rows[(rows["kind"] == kind) & (rows["chosen_by"].isin([chosen_by, AT_RANDOM]))]
        if len(of_kind):
            first = of_kind.iloc[0]
            results |= {f"test/{label}/{kind.replace(' ', '_')}_{metric}": float(first[metric]) for metric in _METRICS}
    return results


def _about(label: str, n_held: int, n_images: int, by_image_label: dict[str, int] | None) -> str:
    start = f"{label}: {n_held} of {n_images} train images hold one. "
    if by_image_label is not None and CHANNEL in by_image_label:
        return start + (
            "The neuron and the channel head the rankings by the image label alone; no box was used to choose them."
        )
    if by_image_label is not None:
        return start + (
            "The neuron heads the ranking by the image label alone; no box was used to choose it. No channel is held "
            "against it, because the ranking holds none (selection.channels=false)."
        )
    if n_held >= _NEARLY_ALL * n_images:
        start += "So whether an image holds one says next to nothing about it. "
    return start + "The neuron, the channel and their thresholds were chosen by the boxes of train images."
