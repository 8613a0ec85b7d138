"""CLIP with MaPLe's prompts, against blocks that are called one by one with the prompts appended, as MaPLe has them."""

import open_clip
import pytest
import torch

from src.models.backbones.open_clip_backbone import OpenClipBackbone
from tests.models.backbones.images import prepared
from tests.models.backbones.test_tails import assert_tails

VISION = {"image_size": 32, "layers": 4, "width": 64, "head_width": 32, "patch_size": 16}
TEXT = {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 4}
DEPTH, LENGTH = 3, 2


@pytest.fixture
def made(monkeypatch, tmp_path):
    """Returns CLIP without prompts, the tensors of MaPLe's learner, and the backbone of both."""
    tiny = {"embed_dim": 48, "vision_cfg": VISION, "text_cfg": TEXT, "quick_gelu": True}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", tiny)
    torch.manual_seed(1)
    clip = open_clip.create_model("tiny").eval()
    torch.save(clip.state_dict(), tmp_path / "clip.pt")
    learner = {"ctx": torch.randn(LENGTH, 32), "proj.weight": torch.randn(64, 32), "proj.bias": torch.randn(64)}
    for index in range(DEPTH - 1):
        learner[f"compound_prompts_text.{index}"] = torch.randn(LENGTH, 32)
        learner[f"compound_prompt_projections.{index}.weight"] = torch.randn(64, 32)
        learner[f"compound_prompt_projections.{index}.bias"] = torch.randn(64)
    of_classes = {
        "prompt_learner.token_prefix": torch.zeros(5, 1, 32),
        "prompt_learner.token_suffix": torch.zeros(5, 5, 32),
    }
    state = {f"prompt_learner.{key}": value for key, value in learner.items()} | of_classes
    for key, value in clip.state_dict().items():
        if key.startswith("visual."):
            state[key.replace("visual.", "image_encoder.")] = value
        elif key == "logit_scale":
            state[key] = value
        elif not key.startswith(("token_embedding", "attn_mask")):
            state[f"text_encoder.{key}"] = value
    torch.save({"state_dict": state, "epoch": 5}, tmp_path / "model.pth.tar-5")
    options = {"prompts": {"depth": DEPTH, "length": LENGTH}, "image_size": 32, "tokens": "projected"}
    checkpoint = str(tmp_path / "model.pth.tar-5")
    return clip, learner, OpenClipBackbone("m", "tiny", checkpoint, str(tmp_path / "clip.pt"), **options)


def prompts_of(learner):
    text = [learner["ctx"], *(learner[f"compound_prompts_text.{index}"] for index in range(DEPTH - 1))]
    maps = ["proj", *(f"compound_prompt_projections.{index}" for index in range(DEPTH - 1))]
    image = [x @ learner[f"{m}.weight"].T + learner[f"{m}.bias"] for x, m in zip(text, maps, strict=True)]
    return text, image


@torch.no_grad()
def test_images_see_the_prompts_behind_their_patches(made):
    clip, learner, backbone = made
    x = prepared(backbone)
    _, prompts = prompts_of(learner)
    visual = clip.visual
    tokens = visual.conv1(x).flatten(2).mT
    tokens = torch.cat([visual.class_embedding.expand(3, 1, -1), tokens], dim=1) + visual.positional_embedding
    tokens = visual.ln_pre(torch.cat([tokens, prompts[0].expand(3, -1, -1)], dim=1))
    for index, block in enumerate(visual.transformer.resblocks):
        if 0 < index < DEPTH:
            tokens = torch.cat([tokens[:, :-LENGTH], prompts[index].expand(3, -1, -1)], dim=1)
        tokens = block(tokens)
        given = backbone.activations(x, [index], "all")[str(index)]
        torch.testing.assert_close(given[:, :1], tokens[:, :1])
        torch.testing.assert_close(given[:, 1 : 1 + LENGTH], tokens[:, -LENGTH:])
        torch.testing.assert_close(given[:, 1 + LENGTH :], tokens[:, 1:-LENGTH])
    torch.testing.assert_close(backbone.activations(x)["output"][:, 0], visual.ln_post(tokens[:, 0]) @ visual.proj)
    assert (backbone.grid(), backbone.n_prefix, backbone.n_tokens(tokens="patch")) == ((2, 2), 1 + LENGTH, 4)
    assert_tails(backbone, backbone.model)


@torch.no_grad()
def test_texts_have_the_prompts_in_the_place_of_their_first_words(made):
    clip, learner, backbone = made
    prompts, _ = prompts_of(learner)
    ids = torch.tensor([[62, 3, 4, 5, 6, 63, 0, 0], [62, 3, 4, 9, 63, 0, 0, 0]])
    x = clip.token_embedding(ids)
    x = torch.cat([x[:, :1], prompts[0].expand(2, -1, -1), x[:, 1 + LENGTH :]], dim=1) + clip.positional_embedding
    for index, block in enumerate(clip.transformer.resblocks):
        if 0 < index < DEPTH:
            x = torch.cat([x[:, :1], prompts[index].expand(2, -1, -1), x[:, 1 + LENGTH :]], dim=1)
        x = block(x, attn_mask=clip.attn_mask)
    expected = clip.ln_final(x)[torch.arange(2), ids.argmax(1)] @ clip.text_projection
    torch.testing.assert_close(backbone.text_features(ids), expected)


def test_without_clip_there_are_no_words(made, tmp_path):
    _, _, backbone = made
    options = {"prompts": {"depth": DEPTH, "length": LENGTH}, "image_size": 32, "tokens": "projected"}
    alone = OpenClipBackbone("m", "tiny", str(tmp_path / "model.pth.tar-5"), **options)
    x = prepared(backbone)
    torch.testing.assert_close(alone.activations(x)["output"], backbone.activations(x)["output"])
    with pytest.raises(ValueError, match=r"backbone\.pretrained to name the CLIP"):
        alone.text_features(torch.zeros(1, 8, dtype=torch.long))
    with pytest.raises(ValueError, match=r"of another shape \(prompts \[3, 2, 32\] instead of \[4, 2, 32\]"):
        OpenClipBackbone(
            "m", "tiny", str(tmp_path / "model.pth.tar-5"), **options | {"prompts": {"depth": 4, "length": 2}}
        )
