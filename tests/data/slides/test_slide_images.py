import numpy as np
import pytest
from PIL import Image

from src.data.slides import slide_files
from src.data.slides.slide_files import SlideImages, open_slide_images
from tests.data.slides.array_slide import ArraySlide


class _Slide:
    """Stands in for OpenSlide: two levels of one picture, fully opaque but for the last columns."""

    dimensions = (400, 200)
    level_downsamples = (1.0, 4.0)

    def __init__(self, properties=None):
        self.properties = properties or {}
        self.reads = []
        picture = np.zeros((200, 400, 4), np.uint8)
        picture[..., 0] = np.arange(400)[None] // 2
        picture[..., 1] = np.arange(200)[:, None]
        picture[:, :360, 3] = 255
        self._levels = (picture, picture[::4, ::4])

    def get_best_level_for_downsample(self, downsample):
        return 1 if downsample >= 4 else 0

    def read_region(self, location, level, size):
        self.reads.append((location, level, size))
        x, y = (int(c / self.level_downsamples[level]) for c in location)
        return Image.fromarray(self._levels[level][y : y + size[1], x : x + size[0]])


def test_thumbnail_is_read_from_a_small_level_and_keeps_its_shape():
    slide = _Slide()
    thumbnail = SlideImages(slide).thumbnail(80)
    assert thumbnail.shape == (40, 80, 3)
    assert slide.reads == [((0, 0), 1, (100, 50))]


def test_small_slides_are_not_enlarged():
    assert SlideImages(_Slide()).thumbnail(4000).shape == (200, 400, 3)


def test_outside_of_the_scan_is_white():
    thumbnail = SlideImages(_Slide()).thumbnail(400)
    assert (thumbnail[:, 361:] == 255).all()
    assert (thumbnail[:, :359, 2] == 0).all()


def test_patch_shows_its_place():
    patch = SlideImages(_Slide()).patch(100, 50, size_level0=32, side=32)
    assert patch.shape == (32, 32, 3)
    assert patch[0, 0].tolist() == [50, 50, 0]
    assert patch[31, 31].tolist() == [65, 81, 0]


def test_resolution_is_stated_or_unknown():
    assert SlideImages(_Slide({"openslide.mpp-x": "0.25"})).mpp == 0.25
    assert SlideImages(_Slide()).mpp is None


def test_file_that_is_no_slide_is_named(tmp_path):
    pytest.importorskip("openslide")
    (tmp_path / "s.svs").write_bytes(b"nothing")
    with (
        pytest.raises(ValueError, match=r"Expected a slide that OpenSlide reads at .*s\.svs"),
        open_slide_images(tmp_path / "s.svs"),
    ):
        pass


@pytest.mark.realdata
def test_real_slide(data_dir):
    pytest.importorskip("openslide")
    for path in sorted((data_dir / "slides").glob("*.svs")):
        with open_slide_images(path) as images:
            width, height = images.size_level0
            thumbnail = images.thumbnail(500)
            patch = images.patch(width // 2, height // 2, 256, 128)
        assert thumbnail.shape[2] == 3
        assert max(thumbnail.shape) == 500
        assert thumbnail.shape[1] / thumbnail.shape[0] == pytest.approx(width / height, rel=0.01)
        # The same tissue, read from level 0 and from the thumbnail's level, has about the same mean colour.
        y, x = height // 2 * thumbnail.shape[0] // height, width // 2 * thumbnail.shape[1] // width
        side = round(256 * thumbnail.shape[1] / width)
        assert np.abs(patch.mean((0, 1)) - thumbnail[y : y + side, x : x + side].mean((0, 1))).max() < 12


def test_a_large_slide_of_one_level_is_read_band_by_band(monkeypatch):
    image = np.random.default_rng(0).integers(0, 256, (900, 610, 3)).astype(np.uint8)
    slide = ArraySlide(image)
    sizes = []
    monkeypatch.setattr(slide, "read_region", lambda at, level, size: (sizes.append(size), read(at, level, size))[1])
    read = ArraySlide(image).read_region
    whole = SlideImages(slide).thumbnail(90)
    assert sizes == [(610, 900)]
    monkeypatch.setattr(slide_files, "_MOST_PIXELS", 610 * 105)
    sizes.clear()
    banded = SlideImages(slide).thumbnail(90)
    assert sizes == [(610, 100)] * 9
    assert banded.shape == whole.shape == (90, 61, 3)
    # Averages of 10 x 10 pixels, of which a resize to a tenth makes nearly the same.
    np.testing.assert_allclose(banded, image.reshape(90, 10, 61, 10, 3).mean(axis=(1, 3)), atol=1)
