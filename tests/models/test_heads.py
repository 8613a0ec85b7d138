import numpy as np
import open_clip
import pytest
import torch

from src.models.backbones.open_clip_backbone import OpenClipBackbone
from src.models.backbones.timm_backbone import TimmBackbone
from src.models.heads import BagHead, PooledProbe, TailHead
from src.models.mil.attention import AttentionMIL
from src.models.mil.classifier import BagClassifier
from src.models.probes import Probe, read_dense_head
from src.models.zero_shot import zero_shot_of

VIT = {"model_name": "test_vit", "image_size": 160, "tokens": "all"}
TOWER = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_the_backbone_itself_ends_in_logits(images):
    backbone = TimmBackbone("vit", layer=-2, model_args={"num_classes": 5}, **VIT)
    head = TailHead(backbone, -2, classes=list("abcde"))
    rows = backbone.activations(images)[backbone.resolve(-2)]
    assert torch.allclose(head(rows), backbone.model(images), atol=1e-5)
    assert (head.eats, head.neuron_ids, head.is_multilabel) == ("activations", None, False)


@torch.no_grad()
def test_a_probe_behind_the_tail_sees_the_features(images):
    backbone = TimmBackbone("vit", layer=1, **VIT)
    torch.manual_seed(0)
    probe = Probe(backbone.d_in("output", "pooled"), ("x", "y"), is_multilabel=True).eval()
    head = TailHead(backbone, 1, probe)
    logits = head(backbone.activations(images)["1"])
    assert torch.allclose(logits, probe(backbone.model(images)), atol=1e-5)
    assert head.classes == ("x", "y")
    assert torch.allclose(head.probabilities(logits), logits.sigmoid())


@torch.no_grad()
def test_zero_shot_behind_the_tail(monkeypatch):
    config = {"embed_dim": 16, "vision_cfg": TOWER, "text_cfg": TEXT}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", config)
    backbone = OpenClipBackbone("clip", "tiny", layer=0, tokens="all", image_size=32)
    names, templates = ["cat", "dog", "small bird"], ["a {}", "the {}"]
    zero_shot = zero_shot_of(backbone, ["cat", "dog", "small_bird"], templates)
    assert zero_shot.logit_scale == pytest.approx(float(backbone.clip.logit_scale.exp()))
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    logits = TailHead(backbone, 0, zero_shot)(backbone.activations(images)["0"])
    expected = open_clip.build_zero_shot_classifier(
        backbone.clip, open_clip.get_tokenizer("tiny"), names, [template.format for template in templates]
    )
    features = backbone.clip.encode_image(images, normalize=True)
    assert torch.allclose(logits, zero_shot.logit_scale * features @ expected, atol=1e-4)


@torch.no_grad()
def test_a_probe_of_the_layer_pools_its_rows():
    torch.manual_seed(0)
    probe = Probe(3, ("x", "y"), "neurons", [4, 0, 2], pool="max").eval()
    head, rows = PooledProbe(probe), torch.randn(2, 6, 3)
    assert torch.equal(head(rows), probe(rows.amax(1)))
    assert (head.eats, head.neuron_ids) == ("latents", (4, 0, 2))


@torch.no_grad()
@pytest.mark.parametrize("input_name", ["activations", "latents"])
def test_a_bag_is_an_item(input_name):
    torch.manual_seed(0)
    classifier = BagClassifier(AttentionMIL(3, 2), ("x", "y"), input_name).eval()
    classifier.input_mean.normal_()
    head, rows = BagHead(classifier), torch.randn(2, 6, 3)
    probabilities = head.probabilities(head(rows))
    assert torch.allclose(probabilities, torch.stack([classifier(bag)[0] for bag in rows]), atol=1e-6)
    assert head.eats == input_name


def test_heads_that_do_not_fit_are_refused():
    backbone = TimmBackbone("vit", layer=1, **VIT)
    with pytest.raises(ValueError, match=r"gives 5 features that the head takes, got 64"):
        TailHead(backbone, 1, Probe(5, ("x", "y")))
    with pytest.raises(ValueError, match=r"gives 2 logits of the classes, got 64.*num_classes"):
        TailHead(backbone, 1, classes=["x", "y"])
    with pytest.raises(ValueError, match="got neither"):
        TailHead(backbone, 1)


@pytest.mark.realdata
@torch.no_grad()
def test_the_white_cell_head_runs_behind_mobilenet(data_dir):
    weights = data_dir / "weights"
    backbone = TimmBackbone(
        "mobilenetv2_035",
        "mobilenetv2_035",
        str(weights / "mobilenetv2_035_imagenet.safetensors"),
        layer=4,
        tokens="all",
        model_args={"pad_type": "same", "bn_eps": 1e-3},
        mean=[0.5] * 3,
        std=[0.5] * 3,
    )
    classes = ["eosinophil", "lymphocyte", "monocyte", "neutrophil"]
    head = TailHead(backbone, 4, read_dense_head(weights / "wbc4_head.npz", classes))
    with np.load(weights / "mobilenetv2_035_reference.npz") as reference:
        images, tokens = torch.from_numpy(reference["images"]), torch.from_numpy(reference["tokens"])
    normalized = backbone.normalize(images.permute(0, 3, 1, 2))
    logits = head(backbone.activations(normalized)[backbone.resolve(4)])
    with np.load(weights / "wbc4_head.npz") as head_weights:
        first, bias, second = (torch.from_numpy(head_weights[name]) for name in head_weights.files)
    expected = (tokens.mean((2, 3)) @ first.T + bias).relu() @ second.T
    assert torch.allclose(logits, expected, atol=1e-3)
    assert head.classes == tuple(classes)
