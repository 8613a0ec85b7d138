import numpy as np
import pytest

from src.analysis.froc import (
    FALSE_POSITIVE_RATES,
    Detections,
    detect,
    find_lesions,
    find_peaks,
    froc_curve,
    froc_scores,
)
from src.data.slides.annotations import Polygon
from src.data.slides.regions import PolygonRegions

SIZE = 100


def square(left, top, edge):
    corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], float)
    return Polygon(corners * edge + (left, top))


def test_lesions_are_connected_pieces_where_micrometres_are_not_known():
    lesions = find_lesions(PolygonRegions([square(0, 0, 200), square(200, 100, 100), square(600, 0, 20)]), SIZE)
    at = lesions.at(np.array([[50, 50], [250, 150], [610, 10], [400, 50], [-1e6, 0]]))
    assert at[0] == at[1] != 0
    assert at[2] not in (0, at[0])
    assert at[3:].tolist() == [0, 0]
    assert lesions.is_isolated.tolist() == [False, False]


def test_camelyons_rules_merge_near_lesions_and_set_small_ones_aside():
    """At 0.25 um a pixel 75 um are 300 pixels, and 275 um 1,100; each outline grows by 150."""
    mpp = 0.25
    regions = PolygonRegions([square(0, 0, 2000), square(2250, 0, 2000), square(6000, 0, 2000), square(9000, 0, 400)])
    lesions = find_lesions(regions, SIZE, mpp)
    at = lesions.at(np.array([[1000, 1000], [3000, 1000], [7000, 1000], [9200, 200], [5000, 1000]]))
    assert at[0] == at[1]  # 250 pixels apart
    assert len({at[0], at[2], at[3], 0}) == 4
    assert at[4] == 0
    assert lesions.at(np.array([[-140, 1000], [-170, 1000]])).tolist() == [at[0], 0]
    # 400 + 2 * 150 pixels are 175 um on a side; the equal ellipse's axis is a little longer.
    assert lesions.is_isolated[at[3] - 1]
    assert lesions.is_isolated.sum() == 1


def test_no_region_is_no_lesion():
    lesions = find_lesions(PolygonRegions([]), SIZE, 0.5)
    assert lesions.at(np.array([[0.5, 0.5], [3, 4]])).tolist() == [0, 0]
    assert len(lesions.is_isolated) == 0


def test_peaks_are_higher_than_their_eight_neighbours():
    x, y = np.meshgrid(np.arange(5), np.arange(4))
    coords = np.stack([x.ravel(), y.ravel()], axis=1) * SIZE
    scores = np.zeros(20)
    scores[[6, 12, 4, 19]] = [5, 4, 2, 2]  # 12 touches 6 at a corner
    peaks = find_peaks(coords, SIZE, scores)
    assert set(peaks[scores[peaks] > 0].tolist()) == {6, 4, 19}
    assert find_peaks(np.array([[0, 0], [SIZE, 0]]), SIZE, np.ones(2)).tolist() == [0]
    assert find_peaks(np.array([[0, 0]]), SIZE, np.ones(1)).tolist() == [0]


@pytest.fixture
def detections():
    """Two lesions on slide 0, one on slide 1, none on slide 2."""
    first = find_lesions(PolygonRegions([square(0, 0, 100), square(500, 0, 100)]), SIZE)
    second = find_lesions(PolygonRegions([square(0, 0, 100)]), SIZE)
    none = find_lesions(PolygonRegions([]), SIZE)
    return detect(
        [
            (first, np.array([[50, 50], [20, 20], [300, 50]]), np.array([0.9, 0.5, 0.8])),
            (second, np.array([[50, 50], [300, 50]]), np.array([0.4, 0.6])),
            (none, np.array([[50, 50]]), np.array([0.7])),
        ]
    )


def test_a_lesion_counts_once_and_what_is_outside_is_false(detections):
    assert sorted(detections.lesion_scores.tolist()) == [-np.inf, 0.4, 0.9]
    assert sorted(detections.false_scores.tolist()) == [0.6, 0.7, 0.8]
    rates, found = froc_curve(detections)
    np.testing.assert_allclose(rates, [0, 1 / 3, 2 / 3, 1, 1])
    np.testing.assert_allclose(found, [1 / 3, 1 / 3, 1 / 3, 1 / 3, 2 / 3])
    # Below 1 false detection a slide one lesion of three is found, from 1 on two.
    assert len(FALSE_POSITIVE_RATES) == 6
    assert froc_scores(detections, np.ones((1, 3))) == pytest.approx((2 * 1 / 3 + 4 * 2 / 3) / 6)


def test_slides_count_as_often_as_they_are_drawn(detections):
    drawn = np.array([[2.0, 0.0, 1.0], [1.0, 1.0, 1.0], [0.0, 0.0, 3.0]])
    scores = froc_scores(detections, drawn)
    # Slide 0 twice and slide 2: lesions 2 of 4 found at 0 false; no more later.
    assert scores[0] == pytest.approx(0.5)
    assert scores[1] == pytest.approx(froc_scores(detections, np.ones((1, 3)))[0])
    empty = Detections(np.empty(0), np.empty(0, int), np.array([1.0]), np.array([0]), 1)
    assert np.isnan(froc_scores(empty, np.ones((2, 1)))).all()


def test_a_method_that_detects_nothing_finds_no_lesion():
    nothing = Detections(np.array([-np.inf]), np.array([0]), np.zeros(0), np.zeros(0, int), n_slides=2)
    assert froc_scores(nothing, np.ones((3, 2))).tolist() == [0, 0, 0]
