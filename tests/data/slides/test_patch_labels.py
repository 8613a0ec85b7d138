import numpy as np
import pytest

from src.data.slides.annotations import Polygon
from src.data.slides.patch_labels import label_patches
from src.data.slides.regions import PolygonRegions


def square(left, top, right, bottom, group="Tumor"):
    return Polygon(np.array([[left, top], [right, top], [right, bottom], [left, bottom]], dtype=float), group)


def coverage(coords, size, polygons):
    return PolygonRegions(polygons).coverage(coords, size)


COORDS = np.array([[0, 0], [100, 0], [200, 0], [300, 0]])


def test_rules_on_a_square_that_covers_one_patch_three_quarters_and_another_a_quarter():
    polygons = [square(-10, -10, 125, 110), square(225, -10, 300, 110)]
    np.testing.assert_allclose(coverage(COORDS, 100, polygons), [1, 0.25, 0.75, 0], atol=1 / 32)
    assert label_patches(COORDS, 100, PolygonRegions(polygons), "any").tolist() == [True, True, True, False]
    assert label_patches(COORDS, 100, PolygonRegions(polygons), "half").tolist() == [True, False, True, False]
    assert label_patches(COORDS, 100, PolygonRegions(polygons), "center").tolist() == [True, False, True, False]


@pytest.mark.parametrize("exclusion_first", [False, True])
def test_exclusions_are_cut_out_whatever_their_order(exclusion_first):
    polygons = [square(0, 0, 400, 100), square(110, 0, 190, 100, "_2")]
    if exclusion_first:
        polygons.reverse()
    assert label_patches(COORDS, 100, PolygonRegions(polygons), "center").tolist() == [True, False, True, True]
    np.testing.assert_allclose(coverage(COORDS, 100, polygons), [1, 0.2, 1, 1], atol=1 / 16)


def test_concave_outline_leaves_its_bay_out():
    bay = Polygon(
        np.array([[0, 0], [300, 0], [300, 100], [200, 100], [200, 10], [100, 10], [100, 100], [0, 100]], float)
    )
    assert label_patches(COORDS, 100, PolygonRegions([bay]), "center").tolist() == [True, False, True, False]


def test_no_outline_and_no_patch():
    assert not label_patches(COORDS, 100, PolygonRegions([]), "any").any()
    assert label_patches(np.empty((0, 2)), 100, PolygonRegions([square(0, 0, 9, 9)]), "center").shape == (0,)


def test_unknown_rule_is_named():
    with pytest.raises(ValueError, match=r"label_rule to be one of .* got 'most'"):
        label_patches(COORDS, 100, PolygonRegions([]), "most")


def test_a_share_may_be_asked_for():
    regions = PolygonRegions([square(-10, -10, 125, 110), square(225, -10, 300, 110)])
    assert label_patches(COORDS, 100, regions, 0.2).tolist() == [True, True, True, False]
    assert label_patches(COORDS, 100, regions, 0.7).tolist() == [True, False, True, False]


def test_a_hole_is_cut_out_of_its_own_region_only():
    outer = np.array([[0, 0], [200, 0], [200, 100], [0, 100]], float)
    hole = np.array([[110, 0], [190, 0], [190, 100], [110, 100]], float)
    regions = PolygonRegions([Polygon(outer, "Tumor", (hole,)), square(100, 0, 150, 100)])
    points = np.array([[50, 50], [130, 50], [170, 50]])
    assert regions.contains(points).tolist() == [True, True, False]
    np.testing.assert_allclose(regions.coverage(COORDS, 100), [1, 0.6, 0, 0], atol=1 / 16)
    assert regions.raster(np.zeros(2), 10, (10, 20))[5, [5, 13, 17]].tolist() == [True, True, False]


def test_overlapping_exclusions_are_cut_out_once():
    polygons = [square(0, 0, 400, 100), square(100, 0, 160, 100, "_2"), square(140, 0, 200, 100, "Exclusion")]
    np.testing.assert_allclose(coverage(COORDS, 100, polygons), [1, 0, 1, 1], atol=1 / 16)


def test_patches_off_the_lattice_far_apart_and_beyond_the_edge():
    rng = np.random.default_rng(0)
    coords = np.concatenate([rng.integers(-60, 900, size=(300, 2)), [[500_000, 400_000], [-90, -90]]])
    left, top, right, bottom = 130.0, 220.0, 700.0, 640.0
    far = square(500_000, 400_000, 500_050, 400_100)
    covered = coverage(coords, 100, [square(left, top, right, bottom), far])
    low = np.clip(coords, (left, top), (right, bottom))
    high = np.clip(coords + 100, (left, top), (right, bottom))
    expected = (high - low).prod(axis=1) / 1e4
    expected[-2] = 0.5
    np.testing.assert_allclose(covered, expected, atol=1 / 16 + 0.01)
