import open_clip
import pytest
import torch

from src.models.backbones.open_clip_backbone import OpenClipBackbone
from tests.models.backbones.images import prepared
from tests.models.backbones.test_tails import assert_tails

TEXT = {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1}
TOWERS = {
    "transformer": {"image_size": 32, "layers": 4, "width": 64, "head_width": 32, "patch_size": 16},
    "average": {"image_size": 32, "layers": 4, "width": 64, "head_width": 32, "patch_size": 16, "pool_type": "avg"},
    "pooler": {
        "image_size": 32,
        "layers": 3,
        "width": 64,
        "head_width": 32,
        "patch_size": 16,
        "attentional_pool": True,
    },
    "resnet": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16},
    "timm": {"image_size": 64, "timm_model_name": "test_resnet", "timm_pool": "avg", "timm_proj": "linear"},
}


@pytest.fixture
def tower(request, monkeypatch):
    vision = TOWERS[request.param]
    config = {"embed_dim": 48, "vision_cfg": vision, "text_cfg": TEXT}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", config)
    return OpenClipBackbone("c", "tiny", image_size=vision["image_size"], tokens="projected")


@pytest.mark.parametrize("tower", list(TOWERS), indirect=True)
def test_tail_ends_in_the_shared_space(tower):
    assert_tails(tower, tower.model)


@pytest.mark.parametrize("tower", ["transformer", "timm"], indirect=True)
def test_projected_is_the_tower_s_result_and_pooled_what_is_projected(tower):
    x = prepared(tower)
    given = tower.activations(x)["output"]
    assert given.shape == (3, 1, 48) == (3, tower.n_tokens(), tower.d_in())
    torch.testing.assert_close(given[:, 0], tower.model(x))
    torch.testing.assert_close(tower.activations(x)["output"][:, 0], tower.clip.encode_image(x))
    pooled = tower.activations(x, tokens="pooled")["output"]
    assert pooled.shape[2] == tower.d_in(tokens="pooled") != 48


@pytest.mark.parametrize("tower", ["transformer"], indirect=True)
def test_text_and_images_share_a_space_and_the_seed(tower):
    text = torch.randint(0, 64, (2, 8), generator=torch.Generator().manual_seed(0))
    features = tower.text_features(text)
    assert features.shape == (2, 48)
    assert "random weights (seed 0)" in tower.description
    again = OpenClipBackbone("c", "tiny", image_size=32)
    torch.testing.assert_close(again.text_features(text), features)
    with pytest.raises(ValueError, match=r"open_clip to make no-such-model"):
        OpenClipBackbone("c", "no-such-model")


@pytest.mark.parametrize("tower", ["transformer"], indirect=True)
def test_the_tower_is_made_for_the_input_size(tower):
    wide = OpenClipBackbone("c", "tiny", image_size=[32, 64], tokens="patch")
    assert wide.grid() == (2, 4)
    assert wide.activations(prepared(wide))["output"].shape == (3, 8, 64)
