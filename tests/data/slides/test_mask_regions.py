import numpy as np
import pytest

from src.data.slides.mask_regions import PANDA_VALUES, MaskRegions
from src.data.slides.patch_labels import OutlinedSlides, label_patches
from src.records import Item

tifffile = pytest.importorskip("tifffile")
pytest.importorskip("openslide")
COORDS = np.array([[0, 0], [256, 0], [512, 0], [768, 0], [960, 0]])


def write_mask(path, values, levels=()):
    """Writes a mask as PANDA has them: values in the red channel, further levels by slicing."""
    with tifffile.TiffWriter(path) as tiff:
        for number, level in enumerate((values, *levels)):
            pixels = np.zeros((*level.shape, 3), np.uint8)
            pixels[..., 0] = level
            # Lossless: values are labels.
            tiff.write(
                pixels, tile=(64, 64), photometric="rgb", compression="adobe_deflate", subfiletype=int(number > 0)
            )


@pytest.fixture
def mask():
    values = np.zeros((256, 1024), np.uint8)
    values[:, :256] = 2
    values[:, 256:384] = 4
    values[:, 512:640] = 1
    return values


def test_the_value_2_is_benign_for_radboud_and_cancer_for_karolinska(tmp_path, mask):
    write_mask(tmp_path / "a_mask.tiff", mask)
    expected = {"radboud": [False, True, False, False, False], "karolinska": [True, False, False, False, False]}
    for provider, labels in expected.items():
        regions = MaskRegions(tmp_path / "a_mask.tiff", PANDA_VALUES[provider])
        assert label_patches(COORDS, 256, regions, "any").tolist() == labels
        truth = OutlinedSlides(tmp_path, "tumor", "any", providers={"a": provider})
        assert truth.label("a", COORDS, 256).tolist() == labels
        assert truth.why_unknown(Item("a", "a", "tumor")) is None
    truth = OutlinedSlides(tmp_path, "tumor", "any", providers={"a": "elsewhere"})
    with pytest.raises(ValueError, match=r"provider of the mask .*a_mask.tiff .*got 'elsewhere'"):
        truth.label("a", COORDS, 256)


def test_a_positive_slide_without_a_mask_is_unknown(tmp_path):
    truth = OutlinedSlides(tmp_path, "tumor", "any", providers={"a": "radboud"})
    assert "has no outline" in truth.why_unknown(Item("a", "a", "tumor"))
    assert truth.why_unknown(Item("a", "a", "normal")) is None


def test_coverage_and_patches_beyond_the_edge(tmp_path, mask):
    write_mask(tmp_path / "a_mask.tiff", mask)
    regions = MaskRegions(tmp_path / "a_mask.tiff", (2, 4))
    np.testing.assert_allclose(regions.coverage(COORDS, 256), [1, 0.5, 0, 0, 0])
    np.testing.assert_allclose(regions.coverage(np.array([[-128, -128], [2000, 0]]), 256), [0.25, 0])
    assert regions.contains(np.array([[-5, 3], [383.9, 255.9], [384, 3], [5000, 3]])).tolist() == [
        False,
        True,
        False,
        False,
    ]
    low, high = regions.bounds
    assert (low.tolist(), high.tolist()) == ([0, 0], [384, 256])
    assert regions.raster(np.array([0, 0]), 64, (2, 8)).tolist() == [[True] * 6 + [False] * 2] * 2
    assert MaskRegions(tmp_path / "a_mask.tiff", (5,)).bounds is None


def test_a_mask_of_another_resolution_is_scaled_and_of_another_shape_refused(tmp_path, mask):
    write_mask(tmp_path / "a_mask.tiff", mask[::4, ::4])
    regions = MaskRegions(tmp_path / "a_mask.tiff", (2, 4), (1024, 256))
    np.testing.assert_allclose(regions.coverage(COORDS, 256), [1, 0.5, 0, 0, 0])
    with pytest.raises(ValueError, match=r"mask of the slide's shape \(1024, 512\)"):
        MaskRegions(tmp_path / "a_mask.tiff", (2, 4), (1024, 512))


def test_a_level_whose_downsample_is_no_whole_number(tmp_path, monkeypatch):
    """10,001 pixels over 2,500 are a downsample of 4.0004."""
    values = np.zeros((64, 10_001), np.uint8)
    values[:, 4000:5000] = 3
    levels = [values[::4, : 2500 * 4 : 4]]
    write_mask(tmp_path / "a_mask.tiff", values, levels)
    monkeypatch.setattr("src.data.slides.mask_regions._LONGEST_SIDE", 4096)
    monkeypatch.setattr("src.data.slides.mask_regions._BAND_PIXELS", 20_000)
    regions = MaskRegions(tmp_path / "a_mask.tiff", (3,))
    assert regions.contains(np.array([[4010, 30], [4990, 30], [3990, 30], [5010, 30]])).tolist() == [
        True,
        True,
        False,
        False,
    ]
    np.testing.assert_allclose(regions.coverage(np.array([[4000, 0], [4992, 0]]), 64), [1, 8 / 64], atol=0.04)


def test_outlines_follow_the_mask(tmp_path, mask):
    write_mask(tmp_path / "a_mask.tiff", mask)
    (outline,) = MaskRegions(tmp_path / "a_mask.tiff", (4,)).outlines()
    assert outline.min(axis=0) == pytest.approx([256, 0], abs=1)
    assert outline.max(axis=0) == pytest.approx([384, 256], abs=1)
