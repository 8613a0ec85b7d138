"""A real encoder: MobileNetV2 0.35 with ImageNet weights, by its preset."""

import numpy as np
import pytest
import torch

from src import config

pytestmark = pytest.mark.realdata


@pytest.fixture(scope="module")
def mobilenet(data_dir):
    weights = data_dir / "weights" / "mobilenetv2_035_imagenet.safetensors"
    composed = config.compose(["backbone=mobilenetv2_035", f"backbone.checkpoint={weights}"])
    return config.instantiate(composed.backbone)


def of(mobilenet, images, tokens):
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
    return mobilenet.activations(mobilenet.normalize(mobilenet.resize(pixels)), tokens=tokens)["output"]


def test_reference_tokens_are_reproduced(mobilenet, data_dir):
    with np.load(data_dir / "weights" / "mobilenetv2_035_reference.npz") as reference:
        given = of(mobilenet, reference["images"], "patch").numpy()
        maps = reference["tokens"]
    np.testing.assert_allclose(given, maps.reshape(*maps.shape[:2], -1).transpose(0, 2, 1), rtol=0, atol=1e-3)


def test_tail_gives_the_features_at_full_size(mobilenet, data_dir):
    with np.load(data_dir / "weights" / "mobilenetv2_035_reference.npz") as reference:
        images = mobilenet.normalize(torch.from_numpy(reference["images"]).permute(0, 3, 1, 2))
    activations = mobilenet.activations(images, [0, 3, 6], "all")
    for layer, given in activations.items():
        torch.testing.assert_close(mobilenet.tail(layer, given), mobilenet.model(images), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_neighbours_of_pooled_features_share_a_class(mobilenet, data_dir):
    """Each image's nearest neighbour by cosine among the others; a direct computation gives 0.457, chance 0.10."""
    with np.load(data_dir / "images" / "cifar10_test_2000.npz") as cifar:
        images, labels = cifar["imgs"], cifar["labels"]
    parts = [of(mobilenet, images[start : start + 100], "pooled")[:, 0] for start in range(0, len(images), 100)]
    features = torch.nn.functional.normalize(torch.cat(parts), dim=1)
    nearest = (features @ features.T).fill_diagonal_(-2).argmax(dim=1)
    assert (labels[nearest.numpy()] == labels).mean() >= 0.44
