import numpy as np
import pytest

from src.data.slides.annotations import Polygon
from src.data.slides.patch_labels import coverage, label_patches


def square(left, top, right, bottom, group="Tumor"):
    return Polygon(np.array([[left, top], [right, top], [right, bottom], [left, bottom]], dtype=float), group)


COORDS = np.array([[0, 0], [100, 0], [200, 0], [300, 0]])


def test_rules_on_a_square_that_covers_one_patch_three_quarters_and_another_a_quarter():
    polygons = [square(-10, -10, 125, 110), square(225, -10, 300, 110)]
    np.testing.assert_allclose(coverage(COORDS, 100, polygons), [1, 0.25, 0.75, 0], atol=1 / 32)
    assert label_patches(COORDS, 100, polygons, "any").tolist() == [True, True, True, False]
    assert label_patches(COORDS, 100, polygons, "half").tolist() == [True, False, True, False]
    assert label_patches(COORDS, 100, polygons, "center").tolist() == [True, False, True, False]


@pytest.mark.parametrize("exclusion_first", [False, True])
def test_exclusions_are_cut_out_whatever_their_order(exclusion_first):
    polygons = [square(0, 0, 400, 100), square(110, 0, 190, 100, "_2")]
    if exclusion_first:
        polygons.reverse()
    assert label_patches(COORDS, 100, polygons, "center").tolist() == [True, False, True, True]
    np.testing.assert_allclose(coverage(COORDS, 100, polygons), [1, 0.2, 1, 1], atol=1 / 16)


def test_concave_outline_leaves_its_bay_out():
    bay = Polygon(
        np.array([[0, 0], [300, 0], [300, 100], [200, 100], [200, 10], [100, 10], [100, 100], [0, 100]], float)
    )
    assert label_patches(COORDS, 100, [bay], "center").tolist() == [True, False, True, False]


def test_no_outline_and_no_patch():
    assert not label_patches(COORDS, 100, [], "any").any()
    assert label_patches(np.empty((0, 2)), 100, [square(0, 0, 9, 9)], "center").shape == (0,)


def test_unknown_rule_is_named():
    with pytest.raises(ValueError, match=r"label_rule to be one of .* got 'most'"):
        label_patches(COORDS, 100, [], "most")
