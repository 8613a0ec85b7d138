import numpy as np
import pandas as pd
import pytest

from src.analysis.box_scores import BoxScores, MaskRule
from src.analysis.boxed_images import BoxedImage
from src.analysis.concept_maps import Grid

pytest.importorskip("cv2")
GRID = Grid(4, 4)


def planted(row, column):
    """A unit that fires on one token of 10 x 10 pixels."""
    values = np.zeros((16, 1), np.float32)
    values[4 * row + column] = 2
    return values


def score(images, thresholds=(0.5,), labels=("cell", "platelet"), scale="neuron", maxima=(2.0,)):
    scores = BoxScores(labels, np.array(maxima), MaskRule(thresholds, scale, "nearest"))
    for values, boxes in images:
        boxes = {label: np.array(of_label, float) for label, of_label in boxes.items()}
        scores.add(values, GRID, BoxedImage(40, 40, boxes=boxes))
    return scores.table()


def test_a_unit_that_marks_the_box_exactly():
    table = score([(planted(1, 2), {"cell": [[20, 10, 30, 20]]}), (planted(0, 0), {})])
    (row,) = table.to_dict("records")
    assert row["label"] == "cell"
    assert row["pointing_accuracy"] == row["mask_iou"] == row["box_iou"] == row["recall_at_0.5"] == 1
    assert row["chance_pointing"] == pytest.approx(1 / 16)
    assert (row["n_images"], row["n_boxes"], row["n_predicted"]) == (1, 1, 1)


def test_a_unit_that_overlaps_by_half_is_counted_up_to_its_iou():
    """A token of 10 x 10 and a box of 10 x 10 that is shifted by 5: IoU 1/3."""
    (row,) = score([(planted(1, 2), {"cell": [[25, 10, 35, 20]]})]).to_dict("records")
    assert row["mask_iou"] == row["box_iou"] == pytest.approx(1 / 3)
    assert [row[f"recall_at_{iou}"] for iou in (0.1, 0.2, 0.3, 0.4, 0.5)] == [1, 1, 1, 0, 0]
    assert row["pointing_accuracy"] == 1  # the token's centre (25, 15) lies on the box's left edge


def test_silence_points_nowhere_and_finds_nothing():
    for scale in ("neuron", "image", "absolute"):
        (row,) = score([(np.zeros((16, 1)), {"cell": [[0, 0, 40, 40]]})], scale=scale).to_dict("records")
        assert row["pointing_accuracy"] == row["mask_iou"] == row["box_iou"] == row["n_predicted"] == 0


def test_thresholds_and_units_have_rows_of_their_own():
    values = np.concatenate([planted(0, 0), planted(3, 3)], axis=1)
    values[5, 0] = 0.8  # above 0.3 of the maximum
    table = score([(values, {"cell": [[0, 0, 10, 10]]})], thresholds=(0.3, 0.5), maxima=(2.0, 2.0))
    ious = table.set_index(["threshold", "unit"])["mask_iou"]
    assert ious.to_dict() == {(0.3, 0): 0.5, (0.3, 1): 0, (0.5, 0): 1, (0.5, 1): 0}


def test_a_large_image_is_scored_at_a_smaller_size_with_the_same_result():
    boxes = {"cell": np.array([[1000.0, 500.0, 1500.0, 1000.0]])}
    scores = BoxScores(["cell"], np.array([2.0]), MaskRule((0.5,), "neuron", "nearest"))
    scores.add(planted(1, 2), GRID, BoxedImage(2000, 2000, boxes=boxes))
    (row,) = scores.table().to_dict("records")
    assert row["mask_iou"] == row["box_iou"] == 1
    assert isinstance(scores.table(), pd.DataFrame)
