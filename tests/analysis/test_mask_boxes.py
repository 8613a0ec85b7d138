import numpy as np
import pytest

from src.analysis.concept_maps import mask_levels
from src.analysis.mask_boxes import (
    box_ious,
    clip_boxes,
    contains,
    contour_boxes,
    fill_boxes,
    mask_iou,
    match_boxes,
)

pytest.importorskip("cv2")


def test_boxes_lie_around_parts_and_small_ones_are_left_out():
    mask = np.zeros((20, 30), bool)
    mask[2:7, 3:9] = True
    mask[7, 9] = True  # touches at a corner
    mask[12:15, 20:23] = True  # 9 square pixels
    assert contour_boxes(mask).tolist() == [[3, 2, 10, 8]]
    assert contour_boxes(mask, 9).tolist() == [[3, 2, 10, 8], [20, 12, 23, 15]]
    assert contour_boxes(np.zeros((4, 4), bool)).shape == (0, 4)


def test_what_lies_in_a_hole_is_not_counted():
    mask = np.ones((20, 20), bool)
    mask[4:16, 4:16] = False
    mask[8:12, 8:12] = True
    assert contour_boxes(mask).tolist() == [[0, 0, 20, 20]]


def test_boxes_partly_outside_are_cut():
    assert clip_boxes(np.array([[-5, 3.5, 12, 9], [1, 2, 3, 4]]), 8, 10).tolist() == [[0, 3.5, 10, 8], [1, 2, 3, 4]]


@pytest.mark.parametrize("box", [[10, 0, 12, 5], [-4, 0, 0, 5], [0, 8, 5, 9]])
def test_boxes_wholly_outside_are_refused(box):
    with pytest.raises(ValueError, match=r"within image 'a' of 10x8 pixels.*correct the csv"):
        clip_boxes(np.array([box]), 8, 10, "image 'a'")


def test_filled_boxes_hold_the_pixels_whose_centres_they_hold():
    assert fill_boxes(np.array([[1, 0, 3, 2]]), 3, 4).astype(int).tolist() == [[0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    assert fill_boxes(np.array([[0.4, 0.6, 1.6, 2.0]]), 2, 2).tolist() == [[False, False], [True, True]]
    assert not fill_boxes(np.empty((0, 4)), 2, 2).any()


def test_ious_of_boxes():
    ious = box_ious(np.array([[0, 0, 2, 2], [5, 5, 6, 6]]), np.array([[1, 1, 3, 3], [0, 0, 2, 2], [8, 8, 9, 9]]))
    np.testing.assert_allclose(ious, [[1 / 7, 1, 0], [0, 0, 0]])


def test_a_box_around_everything_finds_one_object():
    true = np.array([[0, 0, 10, 10], [10, 0, 20, 10]])
    np.testing.assert_allclose(match_boxes(true, np.array([[0, 0, 20, 10]])), [0.5, 0])
    np.testing.assert_allclose(match_boxes(true, true[::-1]), [1, 1])
    assert match_boxes(true, np.empty((0, 4))).tolist() == [0, 0]


def test_iou_of_masks():
    one, other = np.zeros((2, 4), bool), np.zeros((2, 4), bool)
    assert mask_iou(one, other) == 0
    one[0], other[:, 0] = True, True
    assert mask_iou(one, other) == 1 / 5


def test_a_point_on_the_upper_left_edge_is_inside():
    boxes = np.array([[2, 2, 4, 4]])
    assert contains(boxes, (2, 2))
    assert not contains(boxes, (4, 3))
    assert not contains(np.empty((0, 4)), (1, 1))


@pytest.mark.golden
def test_boxes_and_masks_are_those_of_mammo_sae(golden_dir):
    with np.load(golden_dir / "stats" / "mammo_intervention.npz") as file:
        golden = dict(file)
    groups = sorted({key.split("/")[0] for key in golden if key.startswith("heatmap")})
    n_compared = 0
    for group in groups:
        heatmap, gt_boxes = golden[f"{group}/map"], golden[f"{group}/gt_boxes"]
        truth = fill_boxes(gt_boxes, *heatmap.shape)
        for key in (key for key in golden if key.startswith(f"{group}/pred_boxes_th")):
            threshold = key.removeprefix(f"{group}/pred_boxes_th")
            levels = mask_levels(np.array([float(threshold)]), "image", heatmap[None], np.ones(1))
            mask = heatmap > levels[0, 0].astype(np.float32)
            assert contour_boxes(mask).tolist() == golden[key].reshape(-1, 4).tolist()
            expected = float(golden[f"{group}/mask_iou_th{threshold}_notref"])
            assert mask_iou(mask, truth) == pytest.approx(expected, abs=1e-12)
            n_compared += 1
    assert n_compared
    np.testing.assert_array_equal(clip_boxes(golden["clip_boxes/in"], 1520, 912), golden["clip_boxes/out"])
