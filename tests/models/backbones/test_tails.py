"""What follows a layer gives what the whole model gives, for one model of each family."""

import pytest
import torch

from src.models.backbones.timm_backbone import TimmBackbone
from src.models.backbones.torchvision_backbone import TorchvisionBackbone
from src.models.backbones.transformers_backbone import TransformersBackbone
from tests.models.backbones.images import prepared

TRANSFORMER = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "patch_size": 16,
}
STAGES = {"depths": [1, 1, 2, 1], "hidden_sizes": [16, 24, 32, 40]}


def assert_tails(backbone, whole):
    """Compares, relative to the largest value, what follows the first, middle and last layer with all of the model."""
    x = prepared(backbone, n=2)
    layers = sorted({0, len(backbone.layers) // 2, len(backbone.layers) - 1})
    activations = backbone.activations(x, [*layers, None], "all")
    expected = whole(x)
    for layer in (*layers, None):
        given = activations[backbone.resolve(layer)]
        assert given.shape == (2, backbone.n_tokens(layer, "all"), backbone.d_in(layer, "all"))
        error = (backbone.tail(layer, given) - expected).abs().max() / expected.abs().max()
        assert error <= 1e-5, f"{float(error):.1e} behind layer {layer}"
        assert not torch.allclose(backbone.tail(layer, given.flip(-1)), expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    ("model_name", "image_size", "model_args"),
    [
        ("vit_tiny_patch16_224", [64, 32], {"depth": 4}),
        ("vit_small_patch16_dinov3", 32, {"depth": 3}),  # rotary positions, register tokens
        ("resnet10t", [64, 96], {}),
        ("convnext_atto", 64, {}),
        ("efficientnet_b0", 64, {}),
        ("mobilenetv2_035", 64, {}),
        ("mobilenetv3_small_050", 64, {"num_classes": 7}),
        ("swin_tiny_patch4_window7_224", 64, {"depths": (1, 1, 1), "num_heads": (3, 3, 3)}),
        ("regnetx_002", 64, {}),
    ],
)
def test_timm(model_name, image_size, model_args):
    backbone = TimmBackbone("b", model_name, image_size=image_size, model_args=model_args)
    assert_tails(backbone, backbone.model)


@pytest.mark.parametrize(
    ("model_name", "image_size"),
    [
        ("resnet18", [64, 96]),
        ("efficientnet_b0", 64),
        ("mobilenet_v2", 64),
        ("mobilenet_v3_small", 64),
        ("convnext_tiny", 64),
        ("densenet121", 64),
        ("regnet_x_400mf", 64),
        ("swin_t", 64),
        pytest.param("vit_b_32", 64, marks=pytest.mark.slow),
    ],
)
def test_torchvision(model_name, image_size):
    backbone = TorchvisionBackbone("b", model_name, image_size=image_size)
    assert_tails(backbone, backbone.model)


@pytest.mark.slow  # the import of transformers
@pytest.mark.parametrize(
    ("model_name", "model_args"),
    [
        ("vit", TRANSFORMER),
        ("dinov2", TRANSFORMER),
        ("dinov3_vit", TRANSFORMER),
        ("clip_vision_model", TRANSFORMER),
        ("siglip_vision_model", {**TRANSFORMER, "image_size": 64}),
        ("swin", {"embed_dim": 16, "depths": [1, 1, 2], "num_heads": [2, 2, 2], "image_size": 64, "window_size": 4}),
        ("convnext", STAGES),
        ("resnet", {**STAGES, "embedding_size": 16}),
    ],
)
def test_transformers(model_name, model_args):
    backbone = TransformersBackbone("b", model_name, model_args=model_args, image_size=64)
    interpolates = model_name in ("vit", "clip_vision_model")  # 224 px in their configs
    options = {"interpolate_pos_encoding": True} if interpolates else {}
    assert_tails(backbone, lambda x: backbone.model(x, **options).pooler_output.flatten(1))


def test_gradients_reach_the_activations():
    backbone = TimmBackbone("b", "test_resnet", image_size=64)
    activations = backbone.activations(prepared(backbone, n=2), [2], "all")["2"].requires_grad_()
    backbone.tail(2, activations).sum().backward()
    assert activations.grad is not None
    assert activations.grad.abs().sum() > 0


def test_only_what_follows_runs():
    backbone = TimmBackbone("b", "test_vit", image_size=64)
    activations = backbone.activations(prepared(backbone, n=2), [3], "all")["3"]
    backbone.tail(3, activations)
    ran = []
    for index, block in enumerate(backbone.model.blocks):
        block.register_forward_hook(lambda *_, index=index: ran.append(index))
    backbone.tail(3, activations)
    assert ran == [4, 5]


class Skipping(TimmBackbone):
    """Adds the first block's output to the last one's, which no chain of modules does."""

    def _body(self, images):
        kept = []
        handle = self.model.blocks[0].register_forward_hook(lambda _module, _args, output: kept.append(output))
        native = super()._body(images)
        handle.remove()
        return native + kept[0]


def test_a_model_that_does_more_than_call_module_after_module_is_refused():
    backbone = Skipping("b", "test_vit", image_size=64)
    activations = backbone.activations(prepared(backbone, n=2), [3], "all")["3"]
    with pytest.raises(ValueError, match=r"behind layer 3 \(blocks\.3\), got test_vit"):
        backbone.tail(3, activations)
