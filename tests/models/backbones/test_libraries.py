"""Weights of torchvision's and transformers' models: from files, from folders, and errors that say what to give."""

import pytest
import torch
from torchvision import models

from src.models.backbones.torchvision_backbone import TorchvisionBackbone
from src.models.backbones.transformers_backbone import TransformersBackbone
from tests.models.backbones.images import prepared
from tests.models.backbones.test_tails import TRANSFORMER


def test_torchvision_checkpoint_of_a_whole_classifier(tmp_path):
    torch.manual_seed(3)
    model = models.resnet18().eval()
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    backbone = TorchvisionBackbone("b", "resnet18", checkpoint=str(tmp_path / "weights.pth"), image_size=64)
    x = prepared(backbone)
    torch.testing.assert_close(model.fc(backbone.activations(x)["output"][:, 0]), model(x))
    torch.testing.assert_close(
        backbone.activations(x, ["layer2"], "patch")["1"].transpose(1, 2).reshape(3, 128, 8, 8),
        model.layer2(model.layer1(model.maxpool(model.relu(model.bn1(model.conv1(x)))))),
    )
    assert backbone.description == "resnet18 of torchvision with the weights in weights.pth; pooled of output"
    with pytest.raises(FileNotFoundError, match=r"none\.pth.*backbone\.checkpoint"):
        TorchvisionBackbone("b", "resnet18", checkpoint=str(tmp_path / "none.pth"))
    with pytest.raises(ValueError, match=r"weights of torchvision's resnet34"):
        TorchvisionBackbone("b", "resnet34", checkpoint=str(tmp_path / "weights.pth"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_name": "no_such_model"}, "torchvision to make no_such_model"),
        (
            {"model_name": "resnet18", "pretrained": "NO_SUCH_WEIGHTS"},
            "torchvision to make resnet18 with weights NO_SUCH",
        ),
        ({"model_name": "squeezenet1_1"}, "ends in a linear layer, got SqueezeNet"),
        ({"model_name": "vit_b_32", "image_size": [64, 32]}, "a square backbone.image_size.*got 64x32"),
    ],
)
def test_torchvision_models_that_cannot_be_made(options, message):
    with pytest.raises(ValueError, match=message):
        TorchvisionBackbone("b", **options)


@pytest.mark.slow  # the import of transformers
def test_transformers_folder(tmp_path):
    made = TransformersBackbone("b", "dinov2", model_args=TRANSFORMER, image_size=64, seed=4)
    made.model.save_pretrained(tmp_path)
    loaded = TransformersBackbone("b", "dinov2", pretrained=str(tmp_path), image_size=[64, 32], tokens="cls", layer=-2)
    assert loaded.chosen == ("2",)
    assert loaded.grid() == (4, 2)
    assert len(loaded.spec().weights) == 12 != made.spec().weights
    again = TransformersBackbone("b", "dinov2", pretrained=str(tmp_path), image_size=64)
    x = prepared(made)
    torch.testing.assert_close(again.activations(x)["output"], made.activations(x)["output"])
    assert str(tmp_path) not in again.description
    made.model.half().save_pretrained(tmp_path / "half")
    half = TransformersBackbone("b", "dinov2", pretrained=str(tmp_path / "half"), image_size=64)
    torch.testing.assert_close(half.activations(x)["output"], again.activations(x)["output"], rtol=0.01, atol=0.01)


@pytest.mark.slow
def test_transformers_models_that_cannot_be_made(tmp_path):
    with pytest.raises(ValueError, match=r"transformers to make no_such_type"):
        TransformersBackbone("b", "no_such_type")
    with pytest.raises(ValueError, match=r"give backbone\.pretrained=<folder>"):
        TransformersBackbone("b", "dinov2", pretrained=str(tmp_path))
