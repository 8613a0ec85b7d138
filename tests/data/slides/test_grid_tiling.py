import numpy as np
import pytest
from PIL import Image, ImageFilter

from src import config
from src.data.slides import focus
from src.data.slides.focus import is_blurred
from src.data.slides.grid_tiling import GridTiling
from src.data.slides.tissue import find_pen, find_tissue
from tests.data.slides.array_slide import GLASS, PINK, ArraySlide, halved, painted

config.register_resolvers()


def textured(width, height, seed=0):
    """Pink tissue with grain of 4 pixels."""
    rng = np.random.default_rng(seed)
    grain = rng.integers(-50, 50, (height // 4 + 1, width // 4 + 1, 1)).repeat(4, axis=0).repeat(4, axis=1)
    return np.clip(np.array((190, 110, 160)) + grain[:height, :width], 0, 255).astype(np.uint8)


def corners(slide, **options):
    return {tuple(corner) for corner in GridTiling(**{"patch_size": 64} | options).cut(slide).coords.tolist()}


def test_one_lattice_from_the_corner_of_the_slide():
    image = painted(512, 256, (64, 64, 192, 192, PINK), (340, 70, 470, 200, PINK))
    cut = GridTiling(patch_size=64).cut(ArraySlide(image))
    assert cut.coords.tolist() == [[x, y] for x in (64, 128, 320, 384) for y in (64, 128)]
    assert len(cut.pieces) == 2


def test_mpp_gives_patches_of_one_width_on_slides_of_any_resolution():
    image = painted(1024, 512, (0, 0, 1024, 512, PINK))
    for mpp, edge in ((0.25, 256), (0.5, 128), (0.3, 213)):
        cut = GridTiling(patch_size=64, mpp=1.0, saturation_threshold=0.1).cut(ArraySlide(image, mpp=mpp))
        assert cut.grid.size_level0 == edge
        assert len(cut.coords) == (1024 // edge) * (512 // edge)


@pytest.mark.parametrize("stated", [None, "unknown", "0", "nan", "inf", "-1", ""])
def test_mpp_needs_a_slide_that_states_its_own(stated):
    with pytest.raises(ValueError, match=r"state its resolution.*tile\.mpp=null"):
        GridTiling(mpp=0.5).cut(ArraySlide(painted(512, 512), mpp=stated))


def test_slide_smaller_than_a_patch_is_told():
    with pytest.raises(ValueError, match=r"at least one patch, 256 level-0 pixels, got 300 x 200"):
        GridTiling(patch_size=256).cut(ArraySlide(painted(300, 200)))


def test_glass_gives_no_patches_and_the_reason():
    cut = GridTiling(patch_size=64).cut(ArraySlide(painted(512, 256)))
    assert len(cut.coords) == 0
    assert cut.reason == "no patch with enough tissue (tile.min_tissue=0.5)"


def test_holes_give_no_patches():
    image = painted(640, 640, (64, 64, 576, 576, PINK), (192, 192, 384, 384, GLASS))
    found = corners(ArraySlide(image))
    assert not found & {(x, y) for x in (192, 256, 320) for y in (192, 256, 320)}
    assert len(found) == 8 * 8 - 9


GREEN, BLUE, BLACK, RED = (40, 150, 80), (30, 70, 170), (35, 30, 40), (200, 40, 60)


@pytest.mark.parametrize("colour", [GREEN, BLUE, BLACK])
def test_pen_marks_give_no_patches_unless_wanted(colour):
    image = painted(640, 320, (64, 64, 256, 256, PINK), (384, 64, 576, 256, colour))
    tissue = {(x, y) for x in (64, 128, 192) for y in (64, 128, 192)}
    assert corners(ArraySlide(image)) == tissue
    assert corners(ArraySlide(image), pen_contrast=None) >= {(384, 64), (512, 192)}


def test_pen_does_not_lift_the_threshold_of_pale_tissue():
    image = painted(640, 320, (384, 64, 576, 256, GREEN))
    image[64:256, 64:256] = np.array((235, 215, 228)) + np.random.default_rng(0).integers(-2, 3, (192, 192, 1))
    tissue = np.zeros((320, 640), bool)
    tissue[64:256, 64:256] = True
    assert (find_tissue(image, pen=find_pen(image, 0.1)) == tissue).mean() > 0.999
    assert not find_tissue(image)[tissue].all()


def test_stains_are_no_pen():
    # Haematoxylin, eosin and DAB at optical densities 0.2 to 1.5 (vectors of Ruifrok and Johnston 2001).
    vectors = np.array([(0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78), (0.36, 0.85, 0.20)])
    densities = np.linspace(0.2, 1.5, 14)[:, None, None]
    image = (255 * 10 ** -(densities * vectors)).astype(np.uint8)
    assert not find_pen(image, 0.1).any()
    assert not find_pen(np.array([[RED]], np.uint8), 0.1).any()  # as documented: red ink is like eosin


def test_blurred_patches_are_left_out_unless_wanted():
    sharp = textured(512, 512)
    image = np.concatenate([sharp, np.asarray(Image.fromarray(sharp).filter(ImageFilter.GaussianBlur(12)))], axis=1)
    slide = ArraySlide(np.pad(image, ((64, 64), (64, 64), (0, 0)), constant_values=240))
    inside = {(x, y) for x in range(128, 1024, 128) for y in (128, 256, 384)}  # no border to the glass in them
    found, all_ = (corners(slide, patch_size=128, min_sharpness=limit) & inside for limit in (100.0, None))
    assert all_ == inside
    assert found == {(x, y) for x, y in inside if x < 640}  # that at 512 holds the border to the blurred half
    blurred = ArraySlide(np.asarray(Image.fromarray(sharp).filter(ImageFilter.GaussianBlur(12))))
    cut = GridTiling(patch_size=128, saturation_threshold=0.1).cut(blurred)
    assert len(cut.coords) == 0
    assert cut.reason == "all 16 patches with enough tissue are blurred (tile.min_sharpness)"


def test_overlapping_patches_are_judged_where_their_centre_lies(monkeypatch):
    sharp = textured(512, 256)
    image = np.concatenate([sharp, np.asarray(Image.fromarray(sharp).filter(ImageFilter.GaussianBlur(12)))], axis=1)
    options = {"patch_size": 128, "saturation_threshold": 0.1}
    looked_at = []
    monkeypatch.setattr(focus, "is_blurred", lambda *values: bool(looked_at.append(1)) or is_blurred(*values))
    found = {x for x, _ in corners(ArraySlide(image), step=32, **options)}
    assert found == set(range(0, 448, 32))  # a centre at 512 lies in the blurred half
    assert len(looked_at) == 8 * 2
    assert {x for x, _ in corners(ArraySlide(image), step=160, **options)} == {0, 160, 320, 480}  # 480 is half sharp


def test_even_areas_are_not_taken_for_blurred():
    assert not is_blurred(painted(64, 64, ground=PINK), 100.0)
    noise = np.random.default_rng(0).integers(-2, 3, (64, 64, 1)) + np.array(PINK)
    assert not is_blurred(noise.astype(np.uint8), 100.0)


def test_levels_are_read_where_there_are_any():
    image = painted(1024, 512, (128, 128, 512, 384, PINK))
    one, several = ArraySlide(image), ArraySlide(image, halved(image, 1), halved(image, 2))
    assert corners(one) == corners(several)


def test_defaults_of_the_file_are_those_of_the_class():
    assert config.instantiate(config.compose(["tile=default"]).tile) == GridTiling()
