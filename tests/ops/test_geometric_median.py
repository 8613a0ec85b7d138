import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from src.ops.geometric_median import geometric_median


def _sum_of_distances(points, centre):
    return float((points - centre).flatten(1).norm(dim=1).sum())


def test_of_an_odd_number_on_a_line_it_is_the_middle_one():
    direction = torch.tensor([3.0, -4.0], dtype=torch.float64)
    points = torch.tensor([[0.0], [1.0], [2.0], [30.0], [100.0]], dtype=torch.float64) * direction
    torch.testing.assert_close(geometric_median(points), 2 * direction, rtol=0, atol=1e-4)


def test_of_a_square_it_is_the_centre():
    square = torch.tensor([[0.0, 0.0], [2.0, 0.0], [2.0, 2.0], [0.0, 2.0]])
    torch.testing.assert_close(geometric_median(square), torch.tensor([1.0, 1.0]))


def test_of_four_points_it_is_where_the_diagonals_cross():
    points = torch.tensor([[0.0, 0.0], [8.0, 0.0], [0.0, 4.0], [2.0, 4.0]], dtype=torch.float64)
    # The lines 0,0 - 2,4 and 8,0 - 0,4 meet where y = 2x and y = 4 - x/2.
    expected = torch.tensor([1.6, 3.2], dtype=torch.float64)
    torch.testing.assert_close(geometric_median(points), expected, rtol=0, atol=1e-5)


def test_a_point_on_the_median_divides_by_no_zero():
    points = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    assert torch.equal(geometric_median(points), torch.zeros(2))


def test_a_start_on_a_point_that_is_not_the_median_is_left():
    # The mean is the point 2; the median is 0, where three of the points lie.
    points = torch.tensor([[0.0], [0.0], [0.0], [2.0], [8.0]], dtype=torch.float64)
    torch.testing.assert_close(geometric_median(points), torch.zeros(1, dtype=torch.float64), rtol=0, atol=1e-5)


def test_equal_points_and_one_point_are_their_own_median():
    point = torch.tensor([0.1, -7.0, 1e3])
    torch.testing.assert_close(geometric_median(point.expand(6, 3)), point)
    assert torch.equal(geometric_median(point.unsqueeze(0)), point)


def test_image_blocks_are_points_of_all_their_tokens():
    blocks = torch.randn(7, 3, 4, generator=torch.Generator().manual_seed(0))
    median = geometric_median(blocks)
    assert median.shape == (3, 4)
    torch.testing.assert_close(median, geometric_median(blocks.reshape(7, 12)).view(3, 4))
    by_token = torch.stack([geometric_median(blocks[:, token]) for token in range(3)])
    assert not torch.allclose(median, by_token, atol=1e-3)


@settings(deadline=None, max_examples=30)
@given(st.integers(3, 12), st.integers(2, 5), st.integers(0, 2**31))
def test_the_sum_of_distances_falls_nowhere_around_it(n_points, d, seed):
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(n_points, d, generator=generator, dtype=torch.float64)
    median = geometric_median(points)
    least = _sum_of_distances(points, median)
    for scale in (1e-2, 0.1, 1.0):
        for _ in range(10):
            elsewhere = median + scale * torch.randn(d, generator=generator, dtype=torch.float64)
            # 100 iterations come to within a 1e-4th of the least sum, also when the median lies close to a point.
            assert _sum_of_distances(points, elsewhere) > (1 - 1e-4) * least
    assert least <= _sum_of_distances(points, points.mean(0))


def test_outliers_move_it_less_than_the_mean():
    points = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    points[:5] += 1000
    assert geometric_median(points).norm() < 1 < 50 < points.mean(0).norm()


def test_needs_points():
    with pytest.raises(ValueError, match="Expected points to find the geometric median of, got none"):
        geometric_median(torch.zeros(0, 3))
