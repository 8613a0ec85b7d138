import h5py
import numpy as np
import pytest

from src.data.readers.h5_files import patch_size_level0
from src.data.slides.patching import PatchGrid, find_patches, plan_grid, read_patch_file, write_patch_file
from src.data.slides.tissue import find_tissue, saturation


class FakeSlide:
    """A slide of three levels, as OpenSlide shows it."""

    dimensions = (4000, 3000)
    level_dimensions = ((4000, 3000), (1000, 750), (250, 188))
    level_downsamples = (1.0, 4.0, 15.98)
    level_count = 3

    def __init__(self):
        self.properties = {"openslide.mpp-x": "0.25"}

    def get_best_level_for_downsample(self, downsample):
        return max(level for level, factor in enumerate(self.level_downsamples) if factor <= downsample)


def pink(shape):
    return np.full((*shape, 3), (225, 150, 190), dtype=np.uint8)


def test_saturation_is_that_of_hsv():
    image = np.array([[[200, 100, 150], [0, 0, 0], [80, 80, 80], [0, 0, 255]]], dtype=np.uint8)
    np.testing.assert_allclose(saturation(image), [[0.5, 0, 0, 1]])


def test_tissue_is_what_is_coloured_without_specks_and_pinholes():
    image = np.full((200, 200, 3), 240, dtype=np.uint8)
    image[50:150, 60:160] = pink((100, 100))
    image[98:102, 98:102] = 240  # a pinhole
    image[10:14, 10:14] = pink((4, 4))  # a speck
    mask = find_tissue(image, median_size=1)
    expected = np.zeros((200, 200), dtype=bool)
    expected[50:150, 60:160] = True
    np.testing.assert_array_equal(mask, expected)


def test_clean_glass_is_no_tissue_whatever_otsu_says():
    noise = np.random.default_rng(0).integers(238, 243, (100, 100, 1)).repeat(3, axis=2).astype(np.uint8)
    noise[:50] -= np.array([0, 2, 0], dtype=np.uint8)
    assert not find_tissue(noise).any()
    assert not find_tissue(np.full((50, 50, 3), 255, dtype=np.uint8)).any()


def test_patches_are_those_with_enough_tissue_column_by_column():
    tissue = np.zeros((40, 60), dtype=bool)
    tissue[10:30, 20:40] = True  # level-0 pixels 200..400 by 100..300 at scale 10
    grid = PatchGrid(patch_size=100, level=0, size_level0=100, step_level0=100)
    whole = find_patches(tissue, (600, 400), grid, least_share=1.0)
    assert whole.tolist() == [[200, 100], [200, 200], [300, 100], [300, 200]]
    shifted = PatchGrid(100, 0, 100, 50)
    halves = find_patches(tissue, (600, 400), shifted, least_share=0.5)
    assert [150, 100] in halves.tolist()
    assert [150, 50] not in halves.tolist()  # a quarter
    assert (halves[:, 0] + 100 <= 600).all()
    assert (halves[:, 1] + 100 <= 400).all()


def test_no_share_asked_for_still_needs_some_tissue():
    grid = PatchGrid(100, 0, 100, 100)
    assert find_patches(np.zeros((10, 10), dtype=bool), (1000, 1000), grid, least_share=0.0).shape == (0, 2)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"level": 1, "step": None, "mpp": None}, (1, 1024, 1024)),
        ({"level": 0, "step": 128, "mpp": None}, (0, 256, 128)),
        ({"level": 0, "step": None, "mpp": 0.5}, (0, 512, 512)),
        ({"level": 0, "step": None, "mpp": 1.0}, (1, 1024, 1024)),
    ],
)
def test_edge_in_level_0_pixels(options, expected):
    grid = plan_grid(FakeSlide(), 256, **options)
    assert (grid.level, grid.size_level0, grid.step_level0) == expected


def test_grid_that_the_slide_cannot_give_is_an_error():
    with pytest.raises(ValueError, match=r"patch_level below the slide's 3 levels, got 3"):
        plan_grid(FakeSlide(), 256, 3, None, None)
    slide = FakeSlide()
    slide.properties = {}
    with pytest.raises(ValueError, match=r"openslide\.mpp-x.*tile\.mpp=null"):
        plan_grid(slide, 256, 0, None, 0.5)


def test_patch_file_is_clams_and_states_the_edge(tmp_path):
    path = tmp_path / "patches" / "s.h5"
    coords = np.array([[0, 256], [1024, 512]])
    write_patch_file(path, coords, PatchGrid(256, 1, 1024, 1024), FakeSlide())
    with h5py.File(path) as file:
        attributes = dict(file["coords"].attrs)
        assert file["coords"].dtype == np.int64
    assert (attributes["patch_size"], attributes["patch_level"]) == (256, 1)
    assert tuple(attributes["downsample"]) == (4, 4)
    del attributes["patch_size_level0"]
    assert patch_size_level0(attributes) == 1024  # what a reader of CLAM's own attributes makes of it
    stored, edge, side = read_patch_file(path)
    np.testing.assert_array_equal(stored, coords)
    assert (edge, side) == (1024, 256)


def test_patch_file_that_is_missing_or_says_nothing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"s\.h5.*task=tile"):
        read_patch_file(tmp_path / "s.h5")
    with h5py.File(tmp_path / "s.h5", "w") as file:
        file["coords"] = np.zeros((1, 2))
    with pytest.raises(ValueError, match=r"patch_size and downsample .*s\.h5"):
        read_patch_file(tmp_path / "s.h5")
