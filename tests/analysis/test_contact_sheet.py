import numpy as np
import pytest

from src.analysis.contact_sheet import Tile, choose_sheet_items, draw_sheet


def test_the_strongest_and_the_middle_are_of_those_that_fire():
    maxima = np.array([0.0, 5, 1, 0, 3, 2, 4, 0], np.float32)
    rows = choose_sheet_items(maxima, 3, seed=0)
    assert rows["Strongest"] == [1, 6, 4]
    assert rows["Middle"] == [6, 4, 5]
    assert len(set(rows["Random"])) == 3
    assert choose_sheet_items(maxima, 3, seed=0) == rows


def test_a_silent_neuron_has_random_images_alone():
    rows = choose_sheet_items(np.zeros(2), 3, seed=0)
    assert (rows["Strongest"], rows["Middle"], sorted(rows["Random"])) == ([], [], [0, 1])


def test_every_tile_is_on_the_sheet():
    colors = np.random.default_rng(0).integers(10, 240, (4, 3), np.uint8)
    pixels = [np.full((20, 30, 3), color, np.uint8) for color in colors]
    first, second = Tile(pixels[0], pixels[1], "a"), Tile(pixels[2], pixels[3], "an id that is far too long")
    sheet = draw_sheet("Neuron 1", [("Strongest", [first, second]), ("Middle", []), ("Random", [first])])
    for color, n_times in zip(colors, (2, 2, 1, 1), strict=True):
        assert np.count_nonzero((sheet == color).all(-1)) == n_times * 20 * 30


def test_a_sheet_of_nothing_is_refused():
    with pytest.raises(ValueError, match="images to show on the sheet 'Neuron 1', got none"):
        draw_sheet("Neuron 1", [("Strongest", [])])
