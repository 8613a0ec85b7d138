"""Slides of real scanners, whichever are there."""

import numpy as np
import pytest

from src.data.slides.patching import find_patches, plan_grid, read_patch_file, write_patch_file
from src.data.slides.slide_files import SlideImages, list_slides, open_slide
from src.data.slides.tissue import find_tissue, saturation


@pytest.mark.realdata
def test_real_slides_are_cut_where_tissue_is(data_dir, tmp_path):
    for slide_id, path in list_slides(data_dir / "slides").items():
        with open_slide(path) as slide:
            images = SlideImages(slide)
            assert images.size_level0 == slide.dimensions
            assert images.mpp is None or 0.1 < images.mpp < 2
            grid = plan_grid(slide, patch_size=256, level=0, step=None, mpp=None)
            thumbnail = images.thumbnail(600)
            coords = find_patches(find_tissue(thumbnail), slide.dimensions, grid, 0.5)
            write_patch_file(tmp_path / f"{slide_id}.h5", coords, grid, slide)
            rows, columns = (slide.dimensions[axis] // 256 for axis in (1, 0))
            assert 0 < len(coords) < rows * columns
            kept = {(int(x), int(y)) for x, y in coords}
            colour = {
                (x, y): saturation(images.patch(x, y, 256, 32)).mean()
                for x in range(0, 256 * columns, 256)
                for y in range(0, 256 * rows, 256)
            }
        read, size_level0, side = read_patch_file(tmp_path / f"{slide_id}.h5")
        np.testing.assert_array_equal(read, coords)
        assert (size_level0, side) == (256, 256)
        # What was kept is more coloured than what was not.
        assert np.median([colour[corner] for corner in kept]) > max(
            np.median([value for corner, value in colour.items() if corner not in kept]), 8 / 255
        )
