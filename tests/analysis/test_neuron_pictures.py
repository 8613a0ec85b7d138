import numpy as np
import pytest

from src.analysis.neuron_pictures import draw_heatmap, draw_mask, encode_png, outline_boxes, shrink

cv2 = pytest.importorskip("cv2")


def photograph(height=24, width=32):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def test_silence_is_pale_grey_and_strength_is_dark():
    image, strengths = photograph(), np.zeros((24, 32), np.float32)
    strengths[:, 16:] = 1
    drawn = draw_heatmap(image, strengths)
    assert drawn.shape == image.shape
    silent, strong = drawn[:, :16], drawn[:, 16:]
    assert (silent.min() >= 130, (silent == silent[..., :1]).all()) == (True, True)
    assert strong.max() < 90


def test_a_heatmap_grows_darker_with_strength():
    image = np.full((4, 11, 3), 128, np.uint8)
    strengths = np.tile(np.linspace(0, 1, 11, dtype=np.float32), (4, 1))
    brightness = draw_heatmap(image, strengths).astype(float).mean((0, 2))
    assert (np.diff(brightness[1:]) < 0).all()


def test_around_a_mask_the_image_is_darker_and_within_it_is_the_other_picture():
    image = np.full((20, 20, 3), 200, np.uint8)
    mask = np.zeros((20, 20), bool)
    mask[5:15, 5:15] = True
    drawn = draw_mask(image, np.full_like(image, 50), mask)
    assert (drawn[8:12, 8:12] == 50).all()
    assert (drawn[:4] == 120).all()
    assert drawn[5, 5].tolist() == [0, 160, 198]  # the contour


def test_pictures_are_made_smaller_and_never_larger():
    assert shrink(photograph(100, 50), 20).shape == (20, 10, 3)
    image = photograph()
    assert shrink(image, 32) is image


def test_a_png_keeps_every_pixel():
    image = photograph()
    decoded = cv2.imdecode(np.frombuffer(encode_png(image), np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(decoded[..., ::-1], image)


def test_boxes_are_drawn_on_a_copy():
    image = np.zeros((10, 10, 3), np.uint8)
    drawn = outline_boxes(image, np.array([[2, 3, 6, 8]]))
    assert not image.any()
    rows, columns = np.nonzero(drawn.any(-1))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (3, 7, 2, 5)
