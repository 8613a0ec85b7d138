"""PanDerm, its smaller model, and DermLIP, which was trained on from that, against a transformer written anew."""

import pytest
import torch
import torch.nn.functional as F

from src import config
from tests.models.backbones.images import prepared
from tests.models.backbones.published_keys import assert_close, below, published_shapes, random_weights, save
from tests.models.backbones.written_vit import vit_tokens

pytestmark = pytest.mark.slow


def panderm(name, w, tmp_path):
    """A PanDerm with two blocks, an image, and its tokens written anew."""
    overrides = [f"backbone={name}", "+backbone.model_args.depth=2", f"backbone.checkpoint={save(w, tmp_path)}"]
    backbone = config.instantiate(config.compose(overrides).backbone)
    x = prepared(backbone, n=1)
    prefix, n_heads = {"panderm": ("encoder.", 16), "panderm_base": ("", 12), "dermlip_panderm": ("visual.", 12)}[name]
    return backbone, x, vit_tokens(x, below(w.get("model", w), prefix), 2, n_heads, scales=("gamma_1", "gamma_2"))


@pytest.mark.parametrize("name", ["panderm", "panderm_base"])
@torch.no_grad()
def test_panderm_has_biases_of_queries_and_values_and_scaled_branches(name, tmp_path):
    w = random_weights(published_shapes(name, 2))
    backbone, x, tokens = panderm(name, {"model": w} if name == "panderm" else w, tmp_path)
    assert_close(backbone.activations(x, tokens="all")["output"], tokens)
    assert_close(backbone.activations(x)["output"], tokens[:, :1])


@torch.no_grad()
def test_dermlip_norms_the_mean_of_panderm_s_patch_tokens_again(tmp_path):
    w = random_weights(published_shapes("dermlip_panderm", 2))
    backbone, x, tokens = panderm("dermlip_panderm", w, tmp_path)
    pooled = F.layer_norm(tokens[:, 1:].mean(1), (768,), w["visual.norm.weight"], w["visual.norm.bias"], 1e-6)
    projected = pooled @ w["visual.head.weight"].T + w["visual.head.bias"]
    assert_close(backbone.activations(x, tokens="all")["output"], tokens)
    assert_close(backbone.activations(x, tokens="pooled")["output"][:, 0], pooled)
    assert_close(backbone.activations(x)["output"][:, 0], projected)
    assert_close(backbone.tail(0, backbone.activations(x, [0], "all")["0"]), projected)
