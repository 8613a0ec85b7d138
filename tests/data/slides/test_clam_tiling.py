import json

import numpy as np
import pytest

from src import config
from src.data.slides.clam_tiling import ClamTiling
from src.data.slides.tiling import CLAM_COLUMNS
from tests.data.slides.array_slide import GLASS, PINK, ArraySlide, halved, painted

config.register_resolvers()
IMAGE = painted(1024, 512, (128, 128, 512, 384, PINK))


def tiling(**options):
    return ClamTiling(**{"patch_size": 64, "mthresh": 1, "close": 0, "a_t": 0.01, "a_h": 0.01} | options)


def test_patches_lie_on_the_tissue_in_level_0_pixels_whatever_the_level():
    slide = ArraySlide(IMAGE, halved(IMAGE, 1), halved(IMAGE, 2))
    cut = tiling(patch_level=1, contour_fn="basic", seg_level=2).cut(slide)
    # The box goes from pixel 32 to 127 and from 32 to 95 of level 2: from 128 to 508 and to 380 of level 0.
    assert cut.coords.tolist() == [[x, y] for x in (128, 256, 384) for y in (128, 256)]
    assert (cut.grid.level, cut.grid.size_level0, cut.grid.step_level0) == (1, 128, 128)
    (piece,) = cut.pieces
    assert piece.outline.reshape(-1, 2).max(axis=0).tolist() == [508, 380]


def test_steps_are_pixels_of_the_level():
    slide = ArraySlide(IMAGE, halved(IMAGE, 1))
    cut = tiling(patch_level=1, step=32).cut(slide)
    assert cut.grid.step_level0 == 64
    assert set(np.diff(np.unique(cut.coords[:, 0]))) == {64}


def test_a_slide_of_one_level_is_looked_at_whole():
    cut = tiling(contour_fn="basic").cut(ArraySlide(IMAGE))
    assert len(cut.coords) == 6 * 4
    assert (cut.columns["seg_level"], cut.columns["vis_level"]) == (0, 0)
    assert cut.view.shape == IMAGE.shape


def test_the_level_for_a_downsample_of_64_is_looked_at():
    large = painted(8192, 4096, (1024, 1024, 4096, 3072, PINK))
    slide = ArraySlide(large, halved(large, 4), halved(large, 6), halved(large, 7))
    cut = tiling(patch_size=256, a_t=1).cut(slide)
    assert cut.columns["seg_level"] == cut.columns["vis_level"] == 2
    assert cut.view.shape == (64, 128, 3)


def test_fractions_of_a_downsample_are_cut_off_on_the_lattice_and_not_of_what_is_read():
    # A level of 2.992 x 2.994: CLAM steps and tests by 2, and reads 64 pixels of the level.
    slide = ArraySlide(IMAGE, IMAGE[::3, ::3][:171, :342])
    cut = tiling(patch_level=1).cut(slide)
    assert cut.grid.step_level0 == 128
    assert cut.grid.size_level0 == round(64 * 1024 / 342)


def test_more_than_10_to_the_8_pixels_are_refused():
    slide = ArraySlide(IMAGE)
    slide.level_dimensions = ((10_001, 10_000),)
    with pytest.raises(ValueError, match=r"at most 100,000,000 pixels at level 0.*10001 x 10000"):
        tiling().cut(slide)


def test_a_level_that_the_slide_lacks_is_told():
    for option in ("patch_level", "seg_level", "vis_level"):
        with pytest.raises(ValueError, match=r"the slide's 1 levels, got 3"):
            tiling(**{option: 3}).cut(ArraySlide(IMAGE))


def test_pieces_too_small_for_clam_are_told_with_what_to_do():
    cut = tiling(a_t=100.0).cut(ArraySlide(IMAGE))
    assert len(cut.coords) == 0
    assert cut.reason.startswith("no piece of tissue above tile.a_t=100 squares of 512 pixels")


def test_holes_and_excluded_pieces_give_no_patches():
    image = painted(1024, 512, (0, 0, 448, 448, PINK), (128, 128, 320, 320, GLASS), (512, 0, 704, 192, PINK))
    options = {"contour_fn": "basic", "patch_size": 64}
    whole = {tuple(corner) for corner in tiling(**options).cut(ArraySlide(image)).coords.tolist()}
    assert (192, 192) not in whole
    assert (64, 64) in whole
    assert (512, 0) in whole
    first, second = (tiling(**options, exclude_ids=[index]).cut(ArraySlide(image)).coords for index in (1, 0))
    assert whole == {tuple(corner) for corner in [*first.tolist(), *second.tolist()]}
    assert {first[:, 0].min() >= 512, second[:, 0].min() >= 512} == {True, False}
    np.testing.assert_array_equal(tiling(**options, keep_ids=[0]).cut(ArraySlide(image)).coords, first)


def test_columns_are_clams():
    cut = tiling(keep_ids=[0, 2]).cut(ArraySlide(IMAGE))
    assert tuple(cut.columns) == CLAM_COLUMNS
    assert (cut.columns["keep_ids"], cut.columns["exclude_ids"]) == ("0,2", "none")
    json.dumps(dict(cut.columns))


PRESETS = {
    "clam": (8, 7, 4, 100, 16, 8, 250),
    "clam_bwh_biopsy": (15, 11, 2, 1, 1, 2, 50),
    "clam_bwh_resection": (15, 11, 4, 100, 16, 8, 150),
    "clam_tcga": (8, 7, 4, 16, 4, 8, 100),
}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_clams_values(name):
    options = config.instantiate(config.compose([f"tile={name}"]).tile)
    names = ("sthresh", "mthresh", "close", "a_t", "a_h", "max_n_holes", "line_thickness")
    assert tuple(getattr(options, one) for one in names) == PRESETS[name]
    assert (options.seg_level, options.vis_level, options.use_otsu, options.use_padding) == (-1, -1, False, True)
    assert options.contour_fn == "four_pt"
    assert list(options.keep_ids) == list(options.exclude_ids) == []


def test_defaults_of_the_file_are_those_of_the_class():
    node = config.instantiate(config.compose(["tile=clam"]).tile)
    assert node.settings() == ClamTiling().settings()
