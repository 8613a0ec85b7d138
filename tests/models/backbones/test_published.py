"""Published weights files: every key list fits its backbone whole, and what is computed is what was published."""

import pytest
import timm
import torch
import torch.nn.functional as F
from open_clip.timm_model import TimmModel
from torchvision import models

from src import config
from src.models.backbones.conch_backbone import ConchBackbone
from src.models.backbones.open_clip_backbone import OpenClipBackbone
from src.models.backbones.signatures import guess_encoders
from src.models.backbones.timm_backbone import TimmBackbone
from src.models.backbones.torchvision_backbone import TorchvisionBackbone
from tests.models.backbones.images import prepared
from tests.models.backbones.published_keys import (
    NAMES,
    assert_close,
    below,
    meta_weights,
    published_shapes,
    random_weights,
    save,
)
from tests.models.backbones.written_efficientnet import efficientnet_map
from tests.models.backbones.written_vit import vit_tokens

# transformers renames keys while it reads files: those are loaded with numbers, below.
OF_TRANSFORMERS = {"medclip_vit", "phikon", "phikon_v2"}


@pytest.mark.slow  # full sizes, though nothing is computed
@pytest.mark.parametrize("name", [name for name in NAMES if name not in OF_TRANSFORMERS])
def test_published_keys_load_whole_on_the_meta_device(name, monkeypatch):
    weights = meta_weights(published_shapes(name))
    monkeypatch.setattr("src.models.backbones.published.read_weights", lambda *_: dict(weights))
    cfg = config.compose([f"backbone={name}", "backbone.checkpoint=published", "backbone.pretrained=null"]).backbone
    with torch.device("meta"):
        config.instantiate(cfg)
        lacking = next(
            key
            for key in weights
            if key.endswith(("blocks.1.norm2.bias", "1.bn2.bias", "layers.1.mlp.fc1.bias", "resblocks.1.ln_2.bias"))
            or "_blocks.4._bn1.bias" in key
        )
        del weights[lacking]
        with pytest.raises(ValueError, match=r"1 missing"):
            config.instantiate(cfg)


@pytest.mark.parametrize("name", NAMES)
def test_published_keys_tell_the_encoder(name):
    assert name in guess_encoders(published_shapes(name))


def test_wrong_file_is_refused_with_its_misfits_and_a_guess(tmp_path):
    shapes = published_shapes("dinobloom_b", depth=12)
    path = save({key: torch.zeros(shape) for key, shape in shapes.items() if len(shape) < 2 or "pos" in key}, tmp_path)
    with pytest.raises(
        ValueError, match=r"weights of vit_tiny_patch16_224, got \d+ missing \(cls_token, .*, \.\.\.\), "
    ) as error:
        TimmBackbone("b", "vit_tiny_patch16_224", path)
    assert " unexpected (" in str(error.value)
    assert "of another shape (pos_embed [1, 257, 768] instead of [1, 197, 192], " not in str(error.value)
    assert "Its keys are those of dinobloom_b: give backbone=dinobloom_b." in str(error.value)
    with pytest.raises(
        ValueError, match=r"\(a\.b, \.\.\.\) are of no encoder known here: give the backbone\.model_name"
    ):
        TimmBackbone(
            "b", "vit_tiny_patch16_224", save({"state_dict": {"module.a.b": torch.zeros(2)}}, tmp_path, "x.bin")
        )
    with pytest.raises(ValueError, match=r"found no tensors by name"):
        TimmBackbone("b", "vit_tiny_patch16_224", save([1, 2], tmp_path, "y.bin"))


@pytest.mark.parametrize(
    "make",
    [
        lambda: TimmBackbone("b", "test_vit", projection=8, pretrained=True),
        lambda: TorchvisionBackbone("b", "resnet18", projection=8, pretrained="DEFAULT"),
        lambda: OpenClipBackbone("b", "ViT-B-16-quickgelu", prompts={"depth": 2, "length": 2}, pretrained="openai"),
        lambda: ConchBackbone("b", pretrained=True),
    ],
    ids=["timm", "torchvision", "open_clip", "conch"],
)
def test_a_part_without_weights_does_not_stay_random_in_silence(make):
    with pytest.raises(
        ValueError, match=r"file with the weights of the (projection|prompts|model), got .*checkpoint=<"
    ):
        make()


@torch.no_grad()
def test_dinobloom_is_dinov2_below_the_teacher(tmp_path):
    w = random_weights(published_shapes("dinobloom_b", 2))
    path = save({"teacher": w, "iteration": 7}, tmp_path)
    backbone = TimmBackbone("b", "vit_base_patch14_dinov2", path, image_size=224, tokens="all", model_args={"depth": 2})
    x = prepared(backbone, n=1)
    assert_close(backbone.activations(x)["output"], vit_tokens(x, below(w, "backbone."), 2, 12))


@torch.no_grad()
def test_biomedclip_is_open_clip_s_tower(tmp_path):
    torch.manual_seed(0)
    tower = TimmModel("test_vit", embed_dim=24, image_size=64, pool="", proj="linear").eval()
    path = save(
        {f"visual.{key}": value for key, value in tower.state_dict().items()} | {"logit_scale": torch.ones(())},
        tmp_path,
    )
    backbone = TimmBackbone("b", "test_vit", path, projection=24, image_size=64, tokens="projected")
    x = prepared(backbone)
    assert_close(backbone.activations(x)["output"][:, 0], tower(x))


@pytest.mark.slow
@torch.no_grad()
def test_medclip_s_resnet_ends_in_its_projection(tmp_path):
    torch.manual_seed(0)
    official = models.resnet50().eval()
    official.fc = torch.nn.Linear(2048, 512, bias=False)
    weights = {f"vision_model.model.{key}": value for key, value in official.state_dict().items()}
    path = save(weights | {"text_model.projection_head.bias": torch.zeros(512)}, tmp_path)
    backbone = TorchvisionBackbone("b", "resnet50", path, projection=512, image_size=64, tokens="projected")
    x = prepared(backbone, n=2)
    assert_close(backbone.activations(x)["output"][:, 0], official(x))
    assert backbone.d_in(tokens="pooled") == 2048
    assert_close(backbone.tail(3, backbone.activations(x, [3], "all")["3"]), official(x))


@pytest.mark.slow  # EfficientNet-B5 whole
@torch.no_grad()
def test_mammo_clip_is_efficientnet_b5_padded_for_456_pixels(tmp_path):
    w = random_weights(published_shapes("mammo_clip_b5"))
    path = save({"model": w, "config": {"model": {"name": "clip_custom"}}}, tmp_path)
    cfg = config.compose(["backbone=mammo_clip_b5", f"backbone.checkpoint={path}", "backbone.image_size=[96,64]"])
    backbone = config.instantiate(cfg.backbone)
    x = prepared(backbone, n=1)
    given = backbone.activations(x)["output"]
    expected = efficientnet_map(x, below(w, "image_encoder."), padded_for=456)
    assert_close(given, expected.flatten(2).mT)
    assert not torch.allclose(given, efficientnet_map(x, below(w, "image_encoder."), None).flatten(2).mT, rtol=1e-3)


@pytest.mark.slow  # the import of transformers
@torch.no_grad()
def test_plip_is_transformers_clip(tmp_path):
    import transformers

    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 8}
    vision, text = sizes | {"hidden_size": 512, "intermediate_size": 2048, "patch_size": 32}, sizes
    clip = transformers.CLIPModel(transformers.CLIPConfig(vision_config=vision, text_config=text)).eval()
    ids = {"text_model.embeddings.position_ids": torch.arange(77)[None]}
    path = save(clip.state_dict() | ids, tmp_path)
    args = {"vision_cfg": {"image_size": 224, "layers": 2, "width": 512, "patch_size": 32}, "text_cfg": {"layers": 2}}
    backbone = OpenClipBackbone("b", "ViT-B-32-quickgelu", path, model_args=args, tokens="projected")
    x = prepared(backbone, n=2)
    assert_close(backbone.activations(x)["output"][:, 0], clip.get_image_features(x).pooler_output)
    texts = torch.tensor([[49406, 320, 1125, 49407] + [0] * 73])
    mask = (torch.arange(77) < 4)[None]
    assert_close(backbone.text_features(texts), clip.get_text_features(texts, attention_mask=mask).pooler_output)


@pytest.mark.slow
@torch.no_grad()
def test_medclip_s_swin_is_transformers_with_a_projection(tmp_path):
    import transformers

    from src.models.backbones.transformers_backbone import TransformersBackbone

    w = random_weights(published_shapes("medclip_vit"))
    backbone = TransformersBackbone("b", "swin", save(w, tmp_path), projection=512, tokens="projected", image_size=224)
    official = transformers.SwinModel.from_pretrained(
        None, config=transformers.SwinConfig(), state_dict=below(w, "vision_model.model.")
    ).eval()
    x = prepared(backbone, n=1)
    pooled = official(x).pooler_output
    assert_close(backbone.activations(x)["output"][:, 0], pooled @ w["vision_model.projection_head.weight"].T)
    del w["vision_model.model.layernorm.bias"]
    with pytest.raises(ValueError, match=r"1 missing \(layernorm\.bias\).*those of medclip_vit"):
        TransformersBackbone("b", "swin", save(w, tmp_path), projection=512, tokens="projected", image_size=224)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "n_heads", "eps"), [("phikon", 12, 1e-12), ("phikon_v2", 16, 1e-6)])
@torch.no_grad()
def test_phikon_s_file_gives_the_tokens_of_a_vit(name, n_heads, eps, tmp_path):
    w = random_weights(published_shapes(name, depth=1))
    overrides = [
        f"backbone={name}",
        "backbone.model_args.num_hidden_layers=1",
        f"backbone.checkpoint={save(w, tmp_path)}",
    ]
    backbone = config.instantiate(config.compose(overrides).backbone)
    x = prepared(backbone, n=1)
    layer = below(w, "encoder.layer.0.")
    renamed = {"cls_token": w["embeddings.cls_token"], "pos_embed": w["embeddings.position_embeddings"]}
    for part in ("weight", "bias"):
        renamed[f"patch_embed.proj.{part}"] = w[f"embeddings.patch_embeddings.projection.{part}"]
        renamed[f"norm.{part}"] = w[f"layernorm.{part}"]
        qkv = [layer[f"attention.attention.{one}.{part}"] for one in ("query", "key", "value")]
        renamed[f"blocks.0.attn.qkv.{part}"] = torch.cat(qkv)
        renamed[f"blocks.0.attn.proj.{part}"] = layer[f"attention.output.dense.{part}"]
        pairs = (("norm1", "layernorm_before"), ("norm2", "layernorm_after"), ("mlp.fc1", "intermediate.dense"))
        for own, other in (*pairs, ("mlp.fc2", "output.dense")):
            renamed[f"blocks.0.{own}.{part}"] = layer[
                f"{own}.{part}" if f"{own}.{part}" in layer else f"{other}.{part}"
            ]
    for index in (1, 2):
        renamed[f"blocks.0.ls{index}.gamma"] = layer.get(f"layer_scale{index}.lambda1", torch.ones(()))
    tokens = vit_tokens(x, renamed, 1, n_heads, eps=eps)
    assert_close(backbone.activations(x, tokens="all")["output"], tokens)
    assert_close(backbone.activations(x)["output"], tokens[:, :1])


# As the model cards of the hub have it: the arguments of timm.create_model, and what is extracted.
SWIGLU = {"mlp_layer": timm.layers.SwiGLUPacked, "act_layer": torch.nn.SiLU}
CARDS = {
    "uni": (
        "vit_large_patch16_224",
        {"img_size": 224, "patch_size": 16, "init_values": 1e-5, "dynamic_img_size": True},
        1,
    ),
    "uni2_h": (
        "vit_giant_patch14_224",
        {"img_size": 224, "patch_size": 14, "num_heads": 24, "init_values": 1e-5, "embed_dim": 1536}
        | {"mlp_ratio": 2.66667 * 2, "no_embed_class": True, "reg_tokens": 8, "dynamic_img_size": True, **SWIGLU},
        9,
    ),
    "virchow": (
        "vit_huge_patch14_224",
        {"init_values": 1e-5, "mlp_ratio": 5.3375, "global_pool": "", "dynamic_img_size": True, **SWIGLU},
        1,
    ),
    "virchow2": (
        "vit_huge_patch14_224",
        {
            "init_values": 1e-5,
            "mlp_ratio": 5.3375,
            "global_pool": "",
            "reg_tokens": 4,
            "dynamic_img_size": True,
            **SWIGLU,
        },
        5,
    ),
    "gigapath": (
        "vit_giant_patch14_dinov2",
        {"img_size": 224, "patch_size": 16, "embed_dim": 1536, "num_heads": 24, "init_values": 1e-5}
        | {"mlp_ratio": 5.33334},
        1,
    ),
    **dict.fromkeys(
        ("h_optimus_0", "h_optimus_1"),
        ("vit_giant_patch14_reg4_dinov2", {"img_size": 224, "init_values": 1e-5, "global_pool": "token"}, 5),
    ),
}


@pytest.mark.slow  # one block of large models
@pytest.mark.parametrize("name", list(CARDS))
@torch.no_grad()
def test_models_of_the_hub_are_those_of_their_cards(name, tmp_path):
    model_name, arguments, n_prefix = CARDS[name]
    torch.manual_seed(0)
    official = timm.create_model(model_name, num_classes=0, depth=1, **arguments).eval()
    for parameter in official.parameters():
        parameter.add_(0.02 * torch.randn_like(parameter))
    path = save(official.state_dict(), tmp_path)
    args = dict(config.compose([f"backbone={name}"]).backbone.model_args)
    cfg = config.compose([f"backbone={name}", f"backbone.checkpoint={path}"]).backbone
    cfg.model_args = args | {"depth": 1}
    backbone = config.instantiate(cfg)
    x = prepared(backbone, n=1)
    tokens = official.forward_features(x)
    assert_close(backbone.activations(x, tokens="all")["output"], tokens)
    cls, mean = tokens[:, :1], tokens[:, n_prefix:].mean(1, keepdim=True)
    expected = torch.cat([cls, mean], dim=-1) if name.startswith("virchow") else official(x)[:, None]
    assert_close(backbone.activations(x)["output"], expected)
    assert F.cosine_similarity(cls, mean, dim=-1).abs().max() < 0.999
