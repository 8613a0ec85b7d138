"""Heads behind the rest of a model: zero-shot texts, and what is refused."""

from types import SimpleNamespace

import open_clip
import pytest
import torch
import torch.nn.functional as F

from src.activation_spec import ActivationSpec
from src.models.backbones.open_clip_backbone import OpenClipBackbone
from src.tasks import upstream_head
from tests.models.backbones.images import prepared

CLASSES = ("cat", "dog", "red_fox", "truck")


@pytest.fixture
def opened(monkeypatch):
    """Opens a head of a tiny CLIP; what is not said of a steer configuration is as by default."""
    vision = {"image_size": 32, "layers": 3, "width": 32, "head_width": 16, "patch_size": 16}
    text = {"width": 16, "heads": 2, "layers": 1}
    config = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", config)
    backbone = OpenClipBackbone("c", "tiny", image_size=32, layer=-2, tokens="all")
    monkeypatch.setattr(upstream_head, "open_backbone", lambda cfg: backbone)

    def open_it(head="zero_shot", tokens="all", classes="all", tail_classes=None, **zero_shot):
        texts = {"templates": ["a photo of a {}.", "{}"], "texts": {}, "renormalize": True, **zero_shot}
        steer = SimpleNamespace(
            head=head, classes=classes, tail_classes=tail_classes, zero_shot=SimpleNamespace(**texts)
        )
        spec = ActivationSpec(model="tiny", layer="1", tokens=tokens)
        fold = SimpleNamespace(spec=spec, classes=CLASSES, folder=SimpleNamespace(path="features"))
        return upstream_head.open_upstream_head(SimpleNamespace(steer=steer), SimpleNamespace(), fold), backbone

    return open_it


def test_zero_shot_logits_are_those_of_the_whole_model_and_the_prompts(opened):
    head, backbone = opened(texts={"truck": "lorry"})
    images = prepared(backbone)
    logits = head(backbone.activations(images)["1"])
    tokenize = open_clip.get_tokenizer("tiny")
    texts = []
    for name in ("cat", "dog", "red fox", "lorry"):
        features = backbone.text_features(tokenize([f"a photo of a {name}.", name]))
        texts.append(F.normalize(F.normalize(features, dim=-1).mean(0), dim=0))
    features = F.normalize(backbone.clip.encode_image(images), dim=-1)
    expected = backbone.clip.logit_scale.exp() * features @ torch.stack(texts).T
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_half_of_the_classes_have_texts_of_their_own(opened):
    assert opened(classes="base")[0].classes == ("cat", "dog")
    assert opened(classes="novel")[0].classes == ("red_fox", "truck")


def test_what_cannot_be_run_on_is_refused(opened):
    with pytest.raises(ValueError, match=r"Expected all tokens of layer 1 .* got patch"):
        opened(tokens="patch")
    with pytest.raises(ValueError, match=r"names of the model's own logits .* steer.tail_classes"):
        opened(head="tail")
    with pytest.raises(ValueError, match=r"steer\.head among auto"):
        opened(head="oracle")
    with pytest.raises(ValueError, match="logits of the classes, got 24"):
        opened(head="tail", tail_classes=["a", "b"])
