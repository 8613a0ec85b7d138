"""CLAM's contour tests and lattice, worked out by hand."""

import numpy as np
import pytest

from src.data.slides.clam_lattice import cut_pieces, is_in_hole, is_inside
from src.data.slides.outlines import Piece


def box(left, top, right, bottom):
    """The outline of a rectangle through its corner pixels."""
    corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
    return np.array(corners, np.int32).reshape(-1, 1, 2)


SQUARE = box(100, 100, 500, 500)
FAR = (10_000, 10_000)

# Patches of 100: their centre is at +50, the four points 25 from it.
IN_CORNER, ON_BORDER, LEFT_HALF_OUT, POINTS_OUT, ONE_POINT_IN, OUT = (
    (100, 100),
    (500, 300),
    (40, 300),
    (430, 300),
    (30, 30),
    (24, 300),
)


@pytest.mark.parametrize(
    ("corner", "basic", "center", "four_pt", "four_pt_hard"),
    [
        (IN_CORNER, True, True, True, True),
        (ON_BORDER, True, False, False, False),  # points on the outline are inside; the points begin at 525
        (LEFT_HALF_OUT, False, False, True, False),  # centre 90; points 65 and 115
        (POINTS_OUT, True, True, True, False),  # centre 480; points 455 and 505
        (ONE_POINT_IN, False, False, True, False),  # points 55 and 105: the last alone is inside
        (OUT, False, False, False, False),  # points 49 and 99
        ((25, 25), False, False, True, False),  # the point at (100, 100) lies on the outline
        ((50, 50), False, True, True, False),  # the centre lies on its corner
    ],
)
def test_contour_tests(corner, basic, center, four_pt, four_pt_hard):
    found = [is_inside(corner, SQUARE, 100, name) for name in ("basic", "center", "four_pt", "four_pt_hard")]
    assert found == [basic, center, four_pt, four_pt_hard]


def test_edges_that_are_odd_lose_their_fraction():
    # 7 // 2 = 3 to the centre, 3 // 2 = 1 to the points: (96 + 3 + 1, ...) = 100
    assert is_inside((96, 96), SQUARE, 7, "four_pt")
    assert not is_inside((95, 95), SQUARE, 7, "four_pt")
    # no room for four points: the centre alone
    assert is_inside((99, 99), SQUARE, 2, "four_pt_hard")
    assert not is_inside((98, 98), SQUARE, 2, "four_pt")


def test_a_hole_takes_patches_whose_centre_is_inside_it():
    holes = [box(200, 200, 300, 300)]
    assert is_in_hole((200, 200), holes, 100)
    assert not is_in_hole((150, 200), holes, 100)  # the centre (200, 250) lies on its border
    assert is_in_hole((151, 200), holes, 100)
    assert not is_in_hole((199, 199), holes, 1)  # the centre is at 199.5
    assert not is_in_hole((200, 200), [], 100)


def test_lattice_begins_at_the_bounding_box_and_goes_column_by_column():
    found = cut_pieces([Piece(box(30, 10, 129, 59))], FAR, 50, 50, "basic", use_padding=True)
    # cv2.boundingRect counts pixels: 30..129 is 100 wide
    assert found.tolist() == [[30, 10], [80, 10]]
    found = cut_pieces([Piece(box(30, 10, 130, 60))], FAR, 50, 50, "basic", use_padding=True)
    assert found.tolist() == [[30, 10], [30, 60], [80, 10], [80, 60], [130, 10], [130, 60]]
    assert found.dtype == np.int64


def test_every_piece_has_a_lattice_of_its_own_and_they_may_overlap():
    pieces = [Piece(box(0, 0, 99, 49)), Piece(box(20, 25, 69, 74))]
    found = cut_pieces(pieces, FAR, 50, 50, "basic", use_padding=True)
    assert found.tolist() == [[0, 0], [50, 0], [20, 25]]


def test_steps_below_the_edge_overlap():
    found = cut_pieces([Piece(box(0, 0, 99, 9))], FAR, 50, 25, "basic", use_padding=True)
    assert found.tolist() == [[0, 0], [25, 0], [50, 0], [75, 0]]


def test_padding_lets_patches_leave_the_slide():
    piece = Piece(box(0, 0, 119, 49))
    padded = cut_pieces([piece], (120, 50), 50, 50, "basic", use_padding=True)
    assert padded.tolist() == [[0, 0], [50, 0], [100, 0]]
    inside = cut_pieces([piece], (120, 50), 50, 50, "basic", use_padding=False)
    assert inside.tolist() == [[0, 0], [50, 0]]
    exact = cut_pieces([piece], (150, 50), 50, 50, "basic", use_padding=False)
    assert exact.tolist() == padded.tolist()  # the last begins at 100 = 150 - 50


def test_patches_of_a_hole_are_left_out():
    piece = Piece(box(0, 0, 149, 149), [box(50, 50, 99, 99)])
    found = cut_pieces([piece], FAR, 50, 50, "basic", use_padding=True).tolist()
    assert [50, 50] not in found
    assert len(found) == 8


def test_nothing_gives_no_patches():
    assert cut_pieces([], FAR, 50, 50, "basic", use_padding=True).shape == (0, 2)
