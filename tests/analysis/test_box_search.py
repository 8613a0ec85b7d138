import numpy as np
import pytest
import torch

from src.analysis.box_comparison import (
    AT_RANDOM,
    BY_BOXES,
    BY_IMAGE_LABEL,
    CHANNEL,
    NEURON,
    Units,
    choose,
    cover,
    score,
    search,
)
from src.analysis.box_scores import MaskRule
from src.analysis.box_search import TokenCoverage, maxima_of, token_ious
from src.analysis.boxed_images import BoxedImage
from src.analysis.concept_maps import Grid
from src.ops.sparse_latents import SparseLatents

pytest.importorskip("cv2")


def random_case(n_rows=60, n_units=7, n_labels=2):
    rng = np.random.default_rng(0)
    values = np.maximum(rng.standard_normal((n_rows, n_units)), 0).astype(np.float32)
    shares = rng.random((n_labels, n_rows)) * (rng.random((n_labels, n_rows)) < 0.3)
    counted = np.arange(n_rows) % 10 > 0
    return values, TokenCoverage(("a", "b"), shares * counted, counted)


def by_hand(values, level, shares, counted):
    common = area = 0.0
    for value, share, is_counted in zip(values, shares, counted, strict=True):
        if is_counted and value > level:
            common += share
            area += 1
    union = area + shares.sum() - common
    return common / union if union else 0.0


@pytest.mark.parametrize("is_sparse", [True, False])
def test_ious_of_all_units_are_those_counted_one_by_one(is_sparse):
    values, coverage = random_case()

    def rows():
        for start in range(0, len(values), 17):
            piece = values[start : start + 17]
            yield SparseLatents.from_dense(torch.from_numpy(piece)) if is_sparse else piece

    maxima = maxima_of(rows)
    np.testing.assert_array_equal(maxima, values.max(axis=0))
    levels = np.array([[0.0], [0.4], [2.0]], np.float32) * maxima
    found = token_ious(rows, levels, coverage)
    for (label, number, unit), iou in np.ndenumerate(found):
        expected = by_hand(values[:, unit], levels[number, unit], coverage.shares[label], coverage.counted)
        assert iou == pytest.approx(expected, abs=1e-6)
    assert not found[:, 2].any()  # nothing is above twice the maximum


GRID = Grid(2, 2, 1)
RULE = MaskRule((0.3, 0.7), "neuron", "nearest")


def planted_study():
    """Unit 3 fires on the token in which a cell lies, unit 5 on all others; the first row is a class token."""
    rng = np.random.default_rng(0)
    images, values = {}, {}
    for number in range(12):
        place = int(rng.integers(4))
        row, column = divmod(place, 2)
        box = np.array([[10 * column, 10 * row, 10 * column + 10, 10 * row + 10]], float)
        images[f"i{number}"] = BoxedImage(20, 20, boxes={"cell": box} if number % 4 else {})
        dense = rng.random((5, 8)).astype(np.float32)
        dense[:, 3], dense[:, 5] = 0, 1
        dense[0, 3] = 5  # on the class token too, which has no place
        if number % 4:
            dense[1 + place, 3], dense[1 + place, 5] = 4, 0
        values[f"i{number}"] = dense
    return images, values


def units(kind, values):
    def pieces(item_ids):
        for item_id in item_ids:
            piece = values[item_id]
            yield SparseLatents.from_dense(torch.from_numpy(piece)) if kind == "neuron" else piece

    return Units(kind, pieces, lambda item_id, unit_ids: values[item_id][:, list(unit_ids)])


def test_the_planted_neuron_is_chosen_on_train_and_found_on_test_images():
    images, values = planted_study()
    train, test = list(images)[:8], list(images)[8:]
    coverage = cover({item_id: images[item_id] for item_id in train}, ["cell"], GRID)
    searched = [search(units(kind, values), train, coverage, RULE) for kind in ("neuron", "channel")]
    assert searched[0].best(0)[1] == searched[1].best(0)[1] == 3
    contenders = choose(*searched, ["cell"], {"cell": {NEURON: 5, CHANNEL: 3}}, [1], RULE, n_random=3, seed=0)
    table = score(contenders, searched, {item_id: images[item_id] for item_id in test}, GRID, ["cell"], RULE)
    rows = table.set_index(["chosen_by", "kind"])
    by_boxes = rows.loc[(BY_BOXES, "neuron")]
    assert (by_boxes["unit_id"] == 3).all()
    assert (by_boxes[["pointing_accuracy", "mask_iou", "box_iou"]] == 1).all(axis=None)
    by_label = rows.loc[(BY_IMAGE_LABEL, "neuron")]
    assert len(by_label) == 2  # a row a threshold
    assert (by_label["pointing_accuracy"] == 0).all()
    at_random = rows.loc[(AT_RANDOM, "random neurons")]
    assert len(at_random) == 2
    assert (at_random["box_iou"] < 0.6).all()
