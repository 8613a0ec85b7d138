from concurrent.futures import ThreadPoolExecutor

import pytest
import timm
import torch
from huggingface_hub.errors import EntryNotFoundError

from src.models.backbones.timm_backbone import TimmBackbone
from tests.models.backbones.images import images, prepared


def make(model_name="test_vit", image_size=64, **options):
    return TimmBackbone("b", model_name, image_size=image_size, **options)


@pytest.fixture(scope="module")
def vit():
    return make()


def test_activations_have_the_stated_shape_and_need_no_graph(vit):
    (activations,) = vit.activations(prepared(vit)).values()
    assert activations.shape == (3, 1, vit.d_in())
    assert activations.dtype == torch.float32
    assert not activations.requires_grad
    assert not any(parameter.requires_grad for parameter in vit.parameters())


def test_random_weights_are_fixed_by_the_seed_and_said_to_be_random(vit):
    before = torch.random.get_rng_state()
    same, other = make(), make(seed=1)
    torch.testing.assert_close(torch.random.get_rng_state(), before, rtol=0, atol=0)
    ours, equal, others = (one.activations(prepared(one))["output"] for one in (vit, same, other))
    torch.testing.assert_close(equal, ours, rtol=0, atol=0)
    assert not torch.allclose(others, ours)
    assert "random weights (seed 0)" in vit.description


def test_result_of_an_image_does_not_depend_on_its_batch(vit):
    together = vit.activations(prepared(vit), [1], "all")["1"]
    alone = torch.cat([vit.activations(image[None], [1], "all")["1"] for image in prepared(vit)])
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)


def test_layers_and_tokens_of_one_pass_are_timm_s(vit):
    x = prepared(vit)
    expected = vit.model.forward_intermediates(
        x, indices=[0, 4], intermediates_only=True, output_fmt="NLC", return_prefix_tokens=True
    )
    for what in ("all", "cls", "patch", "mean", "cls_mean"):
        given = vit.activations(x, [4, "blocks.0"], what)
        assert list(given) == ["4", "0"]
        for name, (patches, prefix) in zip(("0", "4"), expected, strict=True):
            wanted = {
                "all": torch.cat([prefix, patches], dim=1),
                "cls": prefix[:, :1],
                "patch": patches,
                "mean": patches.mean(dim=1, keepdim=True),
                "cls_mean": torch.cat([prefix[:, :1], patches.mean(dim=1, keepdim=True)], dim=2),
            }[what]
            torch.testing.assert_close(given[name], wanted)
            assert vit.n_tokens(name, what) == wanted.shape[1]
            assert vit.d_in(name, what) == wanted.shape[2]


def test_output_is_after_the_last_norm_and_pooled_is_the_model_s_own(vit):
    x = prepared(vit)
    torch.testing.assert_close(vit.activations(x, [None], "all")["output"], vit.model.forward_features(x))
    torch.testing.assert_close(vit.activations(x)["output"][:, 0], vit.model(x))


def test_the_pass_ends_after_the_last_layer_asked_for(vit):
    ran = []
    handles = [
        block.register_forward_pre_hook(lambda *_, i=i: ran.append(i)) for i, block in enumerate(vit.model.blocks)
    ]
    vit.activations(prepared(vit), [2, 0], "all")
    for handle in handles:
        handle.remove()
    assert ran == [0, 1, 2]


def test_several_threads_get_their_own_activations(vit):
    batches = [vit.normalize(images(2, 64, 64, seed=seed)) for seed in range(16)]
    alone = [vit.activations(batch, [1, 4], "all") for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda batch: vit.activations(batch, [1, 4], "all"), batches))
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other)


def test_maps_are_tokens_row_by_row():
    backbone = make("test_resnet", image_size=[64, 32], layer=[1, -1], tokens="patch")
    x = prepared(backbone)
    stages = backbone.model.forward_intermediates(x, indices=[1, 4], intermediates_only=True)
    given = backbone.activations(x)
    assert list(given) == list(backbone.chosen) == ["1", "4"]
    for name, stage in zip(given, stages, strict=True):
        rows, columns = backbone.grid(name)
        assert (backbone.d_in(name), rows, columns) == tuple(stage.shape[1:])
        assert rows == 2 * columns
        torch.testing.assert_close(given[name].reshape(3, rows, columns, -1).permute(0, 3, 1, 2), stage)
        assert given[name].is_contiguous()


def test_register_tokens_are_no_patches():
    backbone = make("vit_small_patch16_dinov3", image_size=32, model_args={"depth": 2}, layer=0, tokens="patch")
    assert (backbone.n_prefix, backbone.grid(), backbone.n_tokens(), backbone.n_tokens(tokens="all")) == (
        5,
        (2, 2),
        4,
        9,
    )
    assert backbone.activations(prepared(backbone))["0"].shape == (3, 4, 384)


def test_a_module_that_writes_into_its_input_does_not_change_what_was_taken():
    backbone = make("densenet121", image_size=32, layer=0, tokens="patch")
    x = prepared(backbone)
    norm, writes = backbone.model.features.norm0, []
    handle = norm.register_forward_hook(lambda _module, _args, output: writes.append(output.clone()))
    taken = backbone.activations(x, [0, 1])["0"]
    handle.remove()
    torch.testing.assert_close(taken, writes[0].flatten(2).transpose(1, 2), rtol=0, atol=0)


def test_rectangular_images_keep_their_aspect():
    vit = make("test_vit", image_size=[96, 32])
    assert vit.input_size == (96, 32)
    assert vit.grid() == (6, 2)
    assert vit.activations(prepared(vit), [0], "patch")["0"].shape == (3, 12, 64)
    assert vit.spec().input_size == "96x32"


def test_layers_that_are_not_there_are_listed(vit):
    for layer in (6, -7, "blocks.6", "head"):
        with pytest.raises(ValueError, match=rf"backbone\.layer.*got {layer}\. It has: 0 blocks\.0, .*5 blocks\.5"):
            vit.resolve(layer)
    assert [vit.resolve(layer) for layer in (None, "output", 5, "-1", "blocks.3")] == [
        "output",
        "output",
        "5",
        "5",
        "3",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_name": "test_resnet", "layer": 2, "tokens": "cls"}, r"class token for backbone\.tokens=cls,"),
        ({"model_name": "test_resnet", "tokens": "cls_mean"}, r"class token for backbone\.tokens=cls_mean"),
        ({"layer": 2, "tokens": "pooled"}, r"backbone\.layer=null for backbone\.tokens=pooled"),
        ({"tokens": "projected"}, r"projection for backbone\.tokens=projected"),
        ({"tokens": "avg"}, r"backbone\.tokens to be one of cls, patch, .*got avg"),
        ({"resize": "squash"}, r"backbone\.resize to be one of stretch, crop, pad, got squash"),
        ({"resize": "pad", "image_size": [96, 32]}, r"square as backbone\.image_size for .*pad, got \[96, 32\]"),
        ({"intensity": "minmax"}, r"backbone\.intensity to be full or min_max, got minmax"),
        ({"model_name": "no_such_model"}, r"timm to make no_such_model"),
        ({"model_name": "resnet18.no_such_tag"}, r"timm to make resnet18\.no_such_tag"),
        ({"image_size": [1, 2, 3]}, r"one number or \[height, width\], got \[1, 2, 3\]"),
    ],
)
def test_what_a_model_does_not_have_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_with_several_layers_one_must_be_named():
    backbone = make(layer=[0, 2], tokens="cls")
    with pytest.raises(ValueError, match=r"one layer.*\['0', '2'\]"):
        backbone.d_in()
    assert backbone.spec(2).layer == "2"


def test_local_checkpoint_is_loaded_whole(tmp_path):
    torch.manual_seed(7)
    model = timm.create_model("test_resnet")  # with its classifier, which the backbone leaves out
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    backbone = make("test_resnet", checkpoint=str(tmp_path / "weights.pth"))
    x = prepared(backbone)
    torch.testing.assert_close(
        backbone.activations(x)["output"][:, 0], model.eval().forward_head(model.forward_features(x), pre_logits=True)
    )
    assert "weights.pth" in backbone.description
    with pytest.raises(FileNotFoundError, match=r"none\.pth.*backbone\.checkpoint"):
        make("test_resnet", checkpoint=str(tmp_path / "none.pth"))
    with pytest.raises(ValueError, match=r"weights of test_vit, got .*missing"):
        make("test_vit", checkpoint=str(tmp_path / "weights.pth"))
    torch.save({key: value for key, value in model.state_dict().items() if "bn2" not in key}, tmp_path / "less.pth")
    with pytest.raises(ValueError, match=r"missing \(layer1\.0\.bn2"):
        make("test_resnet", checkpoint=str(tmp_path / "less.pth"))


def test_position_embeddings_of_a_checkpoint_are_fitted_to_the_input_size(tmp_path):
    torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "weights.pth")
    backbone = make(checkpoint=str(tmp_path / "weights.pth"), image_size=[64, 32])
    assert backbone.grid() == (4, 2)


def test_weights_of_a_repository_of_the_hub_are_asked_of_it(tmp_path, monkeypatch):
    torch.manual_seed(7)
    weights, asked = timm.create_model("test_vit").state_dict(), []
    torch.save(weights, tmp_path / "pytorch_model.bin")

    def fetch(repository, name):
        asked.append((repository, name))
        if name == "model.safetensors":
            raise EntryNotFoundError("none")
        return str(tmp_path / name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    backbone = make(pretrained="someone/something", image_size=160)
    assert asked == [("someone/something", "model.safetensors"), ("someone/something", "pytorch_model.bin")]
    torch.testing.assert_close(backbone.model.blocks[3].mlp.fc1.weight, weights["blocks.3.mlp.fc1.weight"])
    assert backbone.spec().weights == "published someone/something"


def test_spec_states_layer_tokens_and_grid():
    spec = make("test_resnet", layer=-2, tokens="patch").spec()
    assert (spec.model, spec.layer, spec.tokens, spec.grid) == ("test_resnet", "3", "patch", "4x4")
    assert (spec.weights, spec.input_size, spec.patch_size, spec.mpp) == ("random, seed 0", "64x64", "none", "none")
    assert make("test_resnet", layer=3, tokens="mean").spec().grid == "1x1"
