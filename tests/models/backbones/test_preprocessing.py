import numpy as np
import pytest
import torch
from PIL import Image

from src.models.backbones.preprocessing import Preprocessing
from tests.models.backbones.images import images


def test_resizing_keeps_leading_dimensions_and_uint8():
    stretch = Preprocessing([24, 32])
    assert stretch.resize(images()).shape == (3, 3, 24, 32)
    assert stretch.resize(images()[0]).shape == (3, 24, 32)
    assert stretch.resize(images()).dtype == torch.uint8
    same = images(height=24, width=32)
    assert stretch.resize(same) is same


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_resizing_is_antialiased_as_pillow_s(interpolation):
    (image,) = images(1, 100, 80)
    pillow = Image.fromarray(image.permute(1, 2, 0).numpy())
    expected = pillow.resize((32, 32), getattr(Image.Resampling, interpolation.upper()))
    given = Preprocessing(32, interpolation=interpolation).resize(image).permute(1, 2, 0).numpy()
    assert np.abs(given.astype(int) - np.asarray(expected, int)).max() <= 1


@pytest.mark.parametrize(("height", "width"), [(100, 60), (60, 100), (20, 33), (64, 64)])
def test_a_crop_keeps_the_aspect_and_the_centre(height, width):
    """The shorter side becomes 32 / 0.5 = 64; a line across the image stays where it is relative to the centre."""
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    image[:, :, width // 2 :] = 255
    given = Preprocessing(32, resize="crop", crop_pct=0.5).resize(image)
    assert given.shape == (3, 32, 32)
    assert (given[:, :, :12] == 0).all()
    assert (given[:, :, 20:] == 255).all()


def test_a_rectangular_crop_covers_its_size():
    for height, width in ((100, 60), (60, 100), (10, 300)):
        assert Preprocessing([64, 32], resize="crop").resize(images(1, height, width)).shape == (1, 3, 64, 32)


def test_normalising_and_its_words():
    preprocessing = Preprocessing(32, mean=[0.5] * 3, std=[0.25] * 3)
    white = torch.full((2, 3, 32, 32), 255, dtype=torch.uint8)
    torch.testing.assert_close(preprocessing.normalize(white), torch.full((2, 3, 32, 32), 2.0))
    assert str(preprocessing) == "resize 32 bicubic, mean [0.5, 0.5, 0.5], std [0.25, 0.25, 0.25]"
    assert str(Preprocessing([24, 32], interpolation="bilinear", resize="crop", normalize_each=True)) == (
        "resize 24x32 bilinear, centre crop of 0.875, each image's own mean and std"
    )


def test_each_image_by_its_own_statistics_does_not_see_stain():
    each = Preprocessing(48, normalize_each=True)
    dyed = (images().float() * torch.tensor([0.5, 0.8, 0.6]).view(3, 1, 1) + 20).to(torch.uint8)
    torch.testing.assert_close(each.normalize(dyed), each.normalize(images()), rtol=0, atol=0.05)
    assert not each.normalize(torch.full((1, 3, 48, 48), 200, dtype=torch.uint8)).any()
