import numpy as np

from src.data.slides.cut_images import draw_mask, draw_stitch
from src.data.slides.outlines import trace
from src.data.slides.patching import PatchGrid
from src.data.slides.tiling import Cut

VIEW = np.full((40, 60, 3), 200, np.uint8)
SIZE = (600, 400)  # the view is ten times smaller


def cut_of(mask, *corners, edge=100):
    pieces = [piece.scaled(10, 10) for piece in trace(mask)]
    coords = np.array(corners, np.int64).reshape(-1, 2)
    return Cut(coords, PatchGrid(edge, 0, edge, edge), VIEW, pieces, 1)


def test_mask_outlines_tissue_in_green_and_holes_in_blue():
    mask = np.zeros((40, 60), bool)
    mask[10:30, 10:40] = True
    mask[15:20, 20:25] = False
    drawn = draw_mask(cut_of(mask), SIZE)
    green, blue = (drawn == (0, 255, 0)).all(axis=2), (drawn == (0, 0, 255)).all(axis=2)
    expected = np.zeros((40, 60), bool)
    expected[10:30, 10:40] = True
    expected[11:29, 11:39] = False
    np.testing.assert_array_equal(green, expected)
    assert (np.argwhere(blue).min(axis=0).tolist(), np.argwhere(blue).max(axis=0).tolist()) == ([14, 19], [20, 25])
    assert (drawn[~green & ~blue] == 200).all()
    assert (VIEW == 200).all()


def test_stitch_shows_the_patches_on_black():
    drawn = draw_stitch(cut_of(np.zeros((40, 60)), (0, 0), (200, 100), (550, 350)), SIZE)
    expected = np.zeros((40, 60), bool)
    for left, top in ((0, 0), (20, 10), (55, 35)):  # the last leaves the slide
        expected[top : top + 10, left : left + 10] = True
    np.testing.assert_array_equal((drawn == 200).all(axis=2), expected)
    assert (drawn[~expected] == 0).all()


def test_nothing_gives_an_empty_picture():
    assert (draw_stitch(cut_of(np.zeros((40, 60))), SIZE) == 0).all()
