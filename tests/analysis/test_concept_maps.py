import numpy as np
import pytest
import torch

from src.activation_spec import ActivationSpec
from src.analysis.concept_maps import (
    Grid,
    cover_tokens,
    mask_levels,
    to_grid,
    to_pixels,
    token_centres,
    token_grid,
)
from src.models.backbones.preprocessing import Preprocessing, Window, seen_window


def random_maps(*shape):
    return np.random.default_rng(0).random(shape, np.float32)


def test_bilinear_maps_are_those_of_torch_without_aligned_corners():
    maps = random_maps(3, 5, 4)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(maps)[None], (40, 48), mode="bilinear", align_corners=False
    )
    np.testing.assert_allclose(to_pixels(maps, 40, 48), expected[0].numpy(), atol=1e-6)


def test_a_single_row_of_tokens_is_the_same_all_the_way_down():
    pixels = to_pixels(random_maps(1, 1, 3), 7, 9)
    assert (pixels == pixels[:, :1]).all()


def test_nearest_maps_repeat_each_token():
    maps = random_maps(2, 3, 4)
    np.testing.assert_array_equal(
        to_pixels(maps, 6, 12, interpolation="nearest"), maps.repeat(2, axis=1).repeat(3, axis=2)
    )


def test_what_the_model_did_not_see_is_zero():
    pixels = to_pixels(np.ones((1, 2, 2)), 8, 10, Window(0.25, 0.2, 0.75, 0.8))[0]
    expected = np.zeros((8, 10))
    expected[2:6, 2:8] = 1
    np.testing.assert_allclose(pixels, expected)


@pytest.mark.parametrize(("height", "width"), [(100, 60), (60, 100), (64, 64), (33, 47)])
@pytest.mark.parametrize("resize", ["stretch", "crop"])
def test_the_window_is_what_the_preprocessing_shows(height, width, resize):
    """An image whose pixels state their own place, seen through the preprocessing."""
    rows = torch.linspace(0, 255, height)[:, None].expand(height, width)
    columns = torch.linspace(0, 255, width).expand(height, width)
    image = torch.stack([rows, columns, rows]).round().to(torch.uint8)
    size = (32, 24)
    seen = Preprocessing(size, interpolation="bilinear", resize=resize, crop_pct=0.75).resize(image).float()
    window = seen_window(height, width, size, resize, 0.75)
    for channel, axis, first, last in ((0, 0, window.top, window.bottom), (1, 1, window.left, window.right)):
        n_seen, n_stored = size[axis], image.shape[1 + axis]
        # The place of the centre of each seen pixel in the stored image, and the grey value that is stored there.
        place = (first + (np.arange(n_seen) + 0.5) / n_seen * (last - first)) * n_stored - 0.5
        expected = place / (n_stored - 1) * 255
        found = seen[channel].mean(dim=1 - axis).numpy()
        inner = slice(2, -2)  # antialiasing has no neighbours at the edge
        np.testing.assert_allclose(found[inner], expected[inner], atol=0.04 * 255 / 4)


@pytest.mark.parametrize("resize", ["stretch", "crop", "pad"])
def test_a_planted_token_lies_where_it_was_taken_from(resize):
    """A bright spot of the stored image, found again by undoing resize and crop or padding."""
    image = torch.zeros(3, 60, 100, dtype=torch.uint8)
    image[:, 20:28, 60:68] = 255
    transform = Preprocessing(32, resize=resize, crop_pct=0.8)
    tokens = transform.resize(image)[0].float().reshape(8, 4, 8, 4).mean((1, 3)).numpy()
    window = seen_window(60, 100, (32, 32), resize, 0.8)
    pixels = to_pixels(tokens, 60, 100, window)
    y, x = np.unravel_index(pixels.argmax(), pixels.shape)
    assert 18 <= y < 30
    assert 58 <= x < 70
    x, y = token_centres(Grid(8, 8), 60, 100, window)[tokens.argmax()]
    assert 18 <= y < 30
    assert 56 <= x < 72


def test_the_window_of_a_padded_image_is_the_square_around_it():
    assert seen_window(60, 100, (32, 32), "pad") == pytest.approx((-20 / 60, 0, 80 / 60, 1))
    assert seen_window(10, 7, (32, 32), "pad") == pytest.approx((-11 / 10, -12 / 7, 21 / 10, 20 / 7))
    mask = np.ones((60, 100), bool)
    covered = cover_tokens(mask, Grid(10, 2), seen_window(60, 100, (32, 32), "pad")).reshape(10, 2)
    np.testing.assert_allclose(covered, np.repeat([0, 0, 1, 1, 1, 1, 1, 1, 0, 0], 2).reshape(10, 2), atol=1e-12)


def test_prefix_tokens_are_left_out():
    values = np.arange(14.0).reshape(7, 2)
    np.testing.assert_array_equal(to_grid(values, Grid(2, 3, 1))[1], [[3, 5, 7], [9, 11, 13]])


@pytest.mark.parametrize(("tokens", "n_rows", "n_prefix"), [("patch", 12, 0), ("all", 13, 1), ("all", 17, 5)])
def test_the_grid_follows_from_the_spec(tokens, n_rows, n_prefix):
    assert token_grid(ActivationSpec(tokens=tokens, grid="3x4"), n_rows) == Grid(3, 4, n_prefix)


@pytest.mark.parametrize("tokens", ["cls", "mean", "pooled", "projected"])
def test_rows_without_a_place_have_no_grid(tokens):
    with pytest.raises(ValueError, match=rf"backbone.tokens={tokens}.*backbone.tokens=patch or all"):
        token_grid(ActivationSpec(tokens=tokens, grid="1x1"), 1)


@pytest.mark.parametrize(
    ("spec", "n_rows", "message"),
    [
        (ActivationSpec(), 49, "say the grid of their 49 tokens"),
        (ActivationSpec(tokens="patch", grid="7x7"), 50, "Expected 49 rows an image"),
        (ActivationSpec(tokens="all", grid="7x7"), 48, "Expected 49 rows an image"),
    ],
)
def test_rows_that_do_not_fit_a_grid_are_refused(spec, n_rows, message):
    with pytest.raises(ValueError, match=message):
        token_grid(spec, n_rows)


def test_centres_of_tokens_lie_in_the_window():
    centres = token_centres(Grid(1, 2), 100, 200, Window(0.0, 0.5, 1.0, 1.0))
    np.testing.assert_allclose(centres, [[125, 50], [175, 50]])


def test_coverage_counts_parts_of_tokens():
    mask = np.zeros((6, 8), bool)
    mask[:3, :2] = True  # all of the first token's height and half of its width
    np.testing.assert_allclose(cover_tokens(mask, Grid(2, 2)), [0.5, 0, 0, 0])
    assert cover_tokens(np.ones((5, 7), bool), Grid(3, 3)) == pytest.approx(np.ones(9))
    # Half of the image was seen: the box lies in its left half.
    np.testing.assert_allclose(cover_tokens(mask, Grid(1, 2), Window(0, 0, 0.5, 0.5)), [1, 0])


def test_levels_follow_the_scale_and_silence_has_no_mask():
    maps = np.array([[[0.0, 4.0]], [[0.0, 0.0]]])
    maxima = np.array([10.0, 10.0])
    thresholds = np.array([0.3, 0.5])
    np.testing.assert_allclose(mask_levels(thresholds, "neuron", maps, maxima), [[3, 3], [5, 5]])
    np.testing.assert_allclose(mask_levels(thresholds, "image", maps, maxima), [[1.2, 0], [2, 0]])
    np.testing.assert_allclose(mask_levels(thresholds, "absolute", maps, maxima), [[0.3, 0.3], [0.5, 0.5]])
    for scale in ("neuron", "image", "absolute"):
        masks = maps[None] > mask_levels(thresholds, scale, maps, maxima)[..., None, None]
        assert not masks[:, 1].any()
    with pytest.raises(ValueError, match=r"visualize\.scale"):
        mask_levels(thresholds, "share", maps, maxima)
