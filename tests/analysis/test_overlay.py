import numpy as np
import pytest
from matplotlib.collections import PolyCollection

from src.analysis.overlay import PatchMap, SlideImage, plot_overlay, scale_bar_length

COORDS = np.array([[100, 200], [150, 200], [300, 400]])
OUTLINE = np.array([[90.0, 190.0], [160.0, 190.0], [160.0, 260.0]])


def _slide(mpp=None):
    return SlideImage(np.full((50, 60, 3), 200, np.uint8), (600, 500), mpp)


def _squares(axes):
    (collection,) = [child for child in axes.collections if isinstance(child, PolyCollection)]
    return collection


def test_patches_lie_at_their_place_and_silent_ones_are_not_drawn():
    figure = plot_overlay(_slide(), COORDS, 50, [PatchMap("Neuron", "Latent", np.array([2.0, 0.0, 1.0]))], [OUTLINE])
    squares = _squares(figure.axes[1])
    corners = [path.vertices[:-1].tolist() for path in squares.get_paths()]
    assert corners == [
        [[100, 200], [150, 200], [150, 250], [100, 250]],
        [[300, 400], [350, 400], [350, 450], [300, 450]],
    ]
    assert squares.get_array().tolist() == [2.0, 1.0]


def test_small_differences_above_the_floor_stay_pale():
    scores = np.array([0.9, 1.0, 1.02])
    figure = plot_overlay(_slide(), COORDS, 50, [PatchMap("Attention", "", scores, floor=1, least_range=1)], [])
    squares = _squares(figure.axes[1])
    assert squares.get_array().tolist() == [1.02]
    assert squares.get_clim() == (1, 2)


def test_thumbnail_spans_the_whole_slide_and_the_view_the_tissue():
    figure = plot_overlay(_slide(), COORDS, 50, [], [OUTLINE])
    axes = figure.axes[0]
    assert axes.images[0].get_extent() == [0, 600, 500, 0]
    left, right = axes.get_xlim()
    bottom, top = axes.get_ylim()
    assert 0 <= left < 90 < 350 < right <= 600
    assert 0 <= top < 190 < 450 < bottom <= 500


def test_outline_is_closed_on_every_panel():
    figure = plot_overlay(_slide(), COORDS, 50, [PatchMap("N", "", np.ones(3))], [OUTLINE])
    for axes in figure.axes[:2]:
        assert axes.lines[0].get_xydata().tolist() == [*OUTLINE.tolist(), OUTLINE[0].tolist()]


def test_slide_on_which_the_neuron_is_silent_is_drawn_and_says_so():
    figure = plot_overlay(_slide(), COORDS, 50, [PatchMap("Neuron", "Latent", np.zeros(3))], [])
    assert figure.axes[3].get_xlabel() == "Latent: at most 0 everywhere"
    assert figure.axes[0].get_title(loc="left") == "Slide (no outline)"


@pytest.mark.parametrize(("mpp", "texts"), [(None, []), (0.5, ["20 µm"])])
def test_scale_bar_needs_the_resolution(mpp, texts):
    figure = plot_overlay(_slide(mpp), COORDS, 50, [], [])
    assert [text.get_text() for text in figure.axes[0].texts] == texts


@pytest.mark.parametrize(("width", "mpp", "expected"), [(2048, 0.5, 200), (100_000, 0.25, 5000), (400, 0.04, 2)])
def test_scale_bar_has_a_round_length_of_at_most_a_quarter(width, mpp, expected):
    assert scale_bar_length(width, mpp) == expected


def test_map_of_another_slide_is_refused():
    with pytest.raises(ValueError, match="Expected 3 scores for 'N', one a patch, got 2"):
        plot_overlay(_slide(), COORDS, 50, [PatchMap("N", "", np.ones(2))], [])
