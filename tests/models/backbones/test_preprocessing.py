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


@pytest.mark.parametrize(("height", "width"), [(100, 61), (60, 101), (20, 33), (10, 70), (64, 64)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_padding_is_medclip_s(height, width, interpolation):
    """As its feature extractor has it, in Pillow: a black square of at least the size, the image in its middle."""
    (image,) = images(1, height, width)
    image = image[:1].expand(3, -1, -1)  # it makes images grey
    edge = max(48, height, width)
    square = Image.new("L", (edge, edge), 0)
    square.paste(Image.fromarray(image[0].numpy()), (int((edge - width) / 2), int((edge - height) / 2)))
    expected = square.resize((48, 48), getattr(Image.Resampling, interpolation.upper()))
    given = Preprocessing(48, interpolation=interpolation, resize="pad").resize(image).numpy()
    assert np.abs(given.astype(int) - np.asarray(expected, int)).max() <= 1


def test_padding_keeps_leading_dimensions():
    assert Preprocessing(24, resize="pad").resize(images(3, 40, 20)).shape == (3, 3, 24, 24)


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
    assert str(Preprocessing(32, [0.5] * 3, [0.25] * 3, resize="pad", intensity="min_max")) == (
        "resize 32 bicubic of the image in a black square, each image from its least to its largest value, "
        "mean [0.5, 0.5, 0.5], std [0.25, 0.25, 0.25]"
    )


def test_scaling_from_the_least_to_the_largest_value_is_mammo_clip_s():
    """As its reader has it, in numpy: of each image, over all its channels, before mean and standard deviation."""
    mean, std = 0.3089279, 0.25053555408335154
    preprocessing = Preprocessing(32, [mean] * 3, [std] * 3, intensity="min_max")
    resized = (preprocessing.resize(images()) // 3 + 40).to(torch.uint8)
    given = preprocessing.normalize(resized)
    for image, found in zip(resized, given, strict=True):
        values = image.permute(1, 2, 0).numpy().astype("float32")
        values -= values.min()
        values /= values.max()
        np.testing.assert_allclose(found.permute(1, 2, 0).numpy(), (values - mean) / std, rtol=0, atol=1e-6)
    blank = preprocessing.normalize(torch.full((1, 3, 32, 32), 200, dtype=torch.uint8))
    torch.testing.assert_close(blank, torch.full((1, 3, 32, 32), -mean / std))  # theirs divides 0 by 0


def test_each_image_by_its_own_statistics_does_not_see_stain():
    each = Preprocessing(48, normalize_each=True)
    dyed = (images().float() * torch.tensor([0.5, 0.8, 0.6]).view(3, 1, 1) + 20).to(torch.uint8)
    torch.testing.assert_close(each.normalize(dyed), each.normalize(images()), rtol=0, atol=0.05)
    assert not each.normalize(torch.full((1, 3, 48, 48), 200, dtype=torch.uint8)).any()
