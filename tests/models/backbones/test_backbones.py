import pytest
import timm
import torch

from src.models.backbones.open_clip_backbone import OpenClipBackbone
from src.models.backbones.timm_backbone import TimmBackbone


def patches(n=3, side=48, seed=0):
    return torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def vit():
    return TimmBackbone("v", "test_vit", image_size=64, model_args={"img_size": 64})


def test_activations_have_the_stated_width_and_need_no_graph(vit):
    activations = vit.embed(patches())
    assert activations.shape == (3, vit.d_in)
    assert activations.dtype == torch.float32
    assert not activations.requires_grad
    assert not any(parameter.requires_grad for parameter in vit.parameters())


def test_random_weights_are_fixed_by_the_seed_and_said_to_be_random(vit):
    before = torch.random.get_rng_state()
    same = TimmBackbone("v", "test_vit", image_size=64, model_args={"img_size": 64})
    other = TimmBackbone("v", "test_vit", image_size=64, model_args={"img_size": 64}, seed=1)
    torch.testing.assert_close(torch.random.get_rng_state(), before, rtol=0, atol=0)
    torch.testing.assert_close(same.embed(patches()), vit.embed(patches()), rtol=0, atol=0)
    assert not torch.allclose(other.embed(patches()), vit.embed(patches()))
    assert "random weights (seed 0)" in vit.description


def test_result_of_a_patch_does_not_depend_on_its_batch(vit):
    together = vit.embed(patches())
    alone = torch.cat([vit.embed(patch[None]) for patch in patches()])
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)


def test_layer_and_class_token(vit):
    images = vit.preprocess(patches())
    tokens = vit.model.forward_intermediates(
        images, indices=[0], intermediates_only=True, output_fmt="NLC", return_prefix_tokens=True
    )[0]
    options = {"image_size": 64, "model_args": {"img_size": 64}, "layer": 0}
    average = TimmBackbone("v", "test_vit", pooling="avg", **options)
    class_token = TimmBackbone("v", "test_vit", pooling="cls", **options)
    torch.testing.assert_close(average(images), tokens[0].mean(dim=1))
    torch.testing.assert_close(class_token(images), tokens[1][:, 0])


def test_convolutional_model_and_its_layers():
    whole = TimmBackbone("r", "test_resnet", image_size=64)
    layer = TimmBackbone("r", "test_resnet", image_size=64, layer=2)
    assert whole.embed(patches()).shape == (3, whole.d_in)
    assert layer.embed(patches()).shape == (3, layer.d_in)
    with pytest.raises(ValueError, match=r"class token for backbone\.pooling=cls"):
        TimmBackbone("r", "test_resnet", image_size=64, layer=2, pooling="cls")


def test_local_checkpoint_is_loaded_whole(tmp_path):
    torch.manual_seed(7)
    model = timm.create_model("test_resnet", num_classes=0)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    backbone = TimmBackbone("r", "test_resnet", checkpoint=str(tmp_path / "weights.pth"), image_size=64)
    images = backbone.preprocess(patches())
    torch.testing.assert_close(backbone(images), model.eval()(images))
    assert "weights.pth" in backbone.description
    with pytest.raises(FileNotFoundError, match=r"none\.pth.*backbone\.checkpoint"):
        TimmBackbone("r", "test_resnet", checkpoint=str(tmp_path / "none.pth"))


def test_preprocessing_resizes_and_normalises():
    backbone = TimmBackbone("r", "test_resnet", image_size=32, mean=[0.5] * 3, std=[0.25] * 3)
    grey = torch.full((2, 3, 100, 100), 255, dtype=torch.uint8)
    torch.testing.assert_close(backbone.preprocess(grey), torch.full((2, 3, 32, 32), 2.0))
    assert backbone.transform == "resize 32 bicubic, mean [0.5, 0.5, 0.5], std [0.25, 0.25, 0.25]"


def test_each_image_by_its_own_statistics_does_not_see_stain():
    backbone = TimmBackbone("r", "test_resnet", image_size=48, normalize_each=True)
    dyed = (patches().float() * torch.tensor([0.5, 0.8, 0.6]).view(3, 1, 1) + 20).to(torch.uint8)
    torch.testing.assert_close(backbone.preprocess(dyed), backbone.preprocess(patches()), rtol=0, atol=0.05)
    assert not backbone.preprocess(torch.full((1, 3, 48, 48), 200, dtype=torch.uint8)).any()
    assert "own mean and std" in backbone.transform


@pytest.mark.slow
def test_open_clip_tower():
    backbone = OpenClipBackbone("c", "ViT-S-32", image_size=224)
    bare = OpenClipBackbone("c", "ViT-S-32", image_size=224, project=False)
    assert backbone.embed(patches()).shape == (3, backbone.d_in)
    assert "random weights" in backbone.description
    images = backbone.preprocess(patches())
    torch.testing.assert_close(bare(images) @ backbone.model.proj, backbone(images), rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match=r"open_clip to make no-such-model"):
        OpenClipBackbone("c", "no-such-model")
