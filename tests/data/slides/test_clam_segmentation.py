"""CLAM's segmentation, worked out by hand."""

import numpy as np
import pytest

from src.data.slides.clam_segmentation import choose, find_pieces, tissue_mask
from tests.data.slides.array_slide import painted


def coloured(saturation):
    """A colour of that saturation, of 255: 255 * (255 - low) / 255."""
    return (255, 255 - saturation, 255)


def test_tissue_is_what_is_more_saturated_than_the_threshold():
    image = painted(60, 20, (0, 0, 20, 20, coloured(8)), (20, 0, 40, 20, coloured(9)), ground=(255, 255, 255))
    mask = tissue_mask(image, sthresh=8, mthresh=3, close=0, use_otsu=False)
    assert (np.flatnonzero(mask[10] == 255).min(), np.flatnonzero(mask[10]).max()) == (20, 39)
    assert set(np.unique(mask)) == {0, 255}


def test_otsu_divides_two_saturations_wherever_they_lie():
    image = painted(40, 20, (20, 0, 40, 20, coloured(120)), ground=coloured(60))
    mask = tissue_mask(image, sthresh=0, mthresh=3, close=0, use_otsu=True)
    np.testing.assert_array_equal(mask[10] > 0, np.arange(40) >= 20)


def test_median_takes_specks_and_closing_takes_gaps():
    speck = painted(40, 40, (5, 5, 7, 7, coloured(100)), (20, 20, 38, 38, coloured(100)), ground=(255, 255, 255))
    mask = tissue_mask(speck, sthresh=8, mthresh=5, close=0, use_otsu=False)
    assert not mask[:12, :12].any()
    split = painted(40, 40, (5, 5, 19, 35, coloured(100)), (21, 5, 35, 35, coloured(100)), ground=(255, 255, 255))
    assert not tissue_mask(split, 8, 1, 0, use_otsu=False)[20, 19:21].any()
    assert tissue_mask(split, 8, 1, 4, use_otsu=False)[20, 19:21].all()


def mask_of(*boxes, size=(200, 200)):
    mask = np.zeros(size, np.uint8)
    for left, top, right, bottom, value in boxes:
        mask[top:bottom, left:right] = value
    return mask


# At a downsample of 32 a square of 512 pixels has 256 pixels of the mask; a piece of 17 x 17 pixels has an area of
# 16 * 16 = 256 through the middle of its border.
SCALE = (32.0, 32.0)


def test_pieces_are_kept_above_their_area_in_squares_of_512_pixels():
    mask = mask_of((10, 10, 27, 27, 255))
    assert find_pieces(mask, SCALE, a_t=1, a_h=1, max_n_holes=8) == []
    (piece,) = find_pieces(mask, SCALE, a_t=0.99, a_h=1, max_n_holes=8)
    assert piece.outline.reshape(-1, 2).min(axis=0).tolist() == [320, 320]
    assert piece.outline.reshape(-1, 2).max(axis=0).tolist() == [26 * 32, 26 * 32]


def test_holes_count_against_a_piece():
    # 40 x 40 pixels: 39 * 39 = 1521. The hole's border lies on the piece's pixels around it: 21 x 21 -> 21 * 21 = 441
    # less nothing at its corners, which OpenCV cuts off: 441 - 4 * 0.5 = 439.
    mask = mask_of((10, 10, 50, 50, 255), (20, 20, 40, 40, 0))
    limit = (1521 - 439) / 256
    assert find_pieces(mask, SCALE, limit, 1, 8) == []
    assert len(find_pieces(mask, SCALE, limit - 0.01, 1, 8)) == 1


def test_the_largest_holes_are_kept_when_they_are_large_enough():
    holes = [(20, 20, 40, 40, 0), (60, 20, 90, 50, 0), (20, 60, 30, 70, 0)]
    mask = mask_of((10, 10, 110, 110, 255), *holes)

    def edges(a_h, max_n_holes):
        (piece,) = find_pieces(mask, SCALE, 1, a_h, max_n_holes)
        return [int(np.ptp(hole[:, 0, 0])) // 32 for hole in piece.holes]

    assert edges(0, 8) == [31, 21, 11]
    assert edges(0, 2) == [31, 21]
    assert edges(1, 8) == [31, 21]  # 11 * 11 - 2 = 119 is below 256
    assert edges(3, 8) == [31]
    assert edges(3, 1) == [31]
    assert edges(4, 8) == []


def test_tissue_inside_a_hole_is_a_piece_of_its_own():
    mask = mask_of((10, 10, 110, 110, 255), (20, 20, 100, 100, 0), (40, 40, 80, 80, 255))
    pieces = find_pieces(mask, SCALE, 0, 0, 8)
    assert sorted(len(piece.holes) for piece in pieces) == [0, 1]


def test_fractions_of_level_0_pixels_are_cut_off():
    (piece,) = find_pieces(mask_of((3, 3, 23, 23, 255)), (3.3, 1.5), 0, 0, 8)
    assert piece.outline.reshape(-1, 2).min(axis=0).tolist() == [9, 4]


def test_nothing_gives_no_pieces():
    assert find_pieces(mask_of(), SCALE, 0, 0, 8) == []


@pytest.mark.parametrize(
    ("keep", "exclude", "expected"),
    [([], [], "abc"), ([2, 0], [], "ac"), ([], [1], "ac"), ([0, 1], [1], "a"), ([7], [], "")],
)
def test_pieces_are_chosen_by_their_place(keep, exclude, expected):
    assert "".join(choose("abc", keep, exclude)) == expected
