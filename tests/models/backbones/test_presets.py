"""Every backbone of conf/ is, at full size, what its comment says; without weights, on the meta device."""

import re
from pathlib import Path

import pytest
import torch

from src import config
from src.models.backbones.spec import configured_spec, size_pair

PRESETS = [path for path in sorted(Path("conf/backbone").glob("*.yaml")) if "_target_" in path.read_text()]
LAYERS = re.compile(r"^# Layers: (\d+), (\S+) to (\S+); keys as (\S+)\.$", re.MULTILINE)
ACTIVATIONS = re.compile(r"^# Activations: (\d+) wide; grid (\d+)x(\d+), (\d+) prefix tokens?\.$", re.MULTILINE)


def test_presets_are_found():
    assert len(PRESETS) > 10


@pytest.mark.slow  # large models, though nothing is computed
@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_comment_states_layers_width_and_grid(path):
    text = path.read_text()
    stated, of_activations = LAYERS.search(text), ACTIVATIONS.search(text)
    assert stated is not None, f"{path} does not state its layers: see the other presets"
    assert of_activations is not None, f"{path} does not state its activations: see the other presets"
    cfg = config.compose([f"backbone={path.stem}"]).backbone
    cfg.pretrained, cfg.checkpoint = False, None
    with torch.device("meta"):
        backbone = config.instantiate(cfg)
    assert backbone.device.type == "meta"
    assert (str(len(backbone.layers)), backbone.layers[0], backbone.layers[-1]) == stated.groups()[:3]
    assert stated[4] in backbone.model.state_dict()
    assert (backbone.d_in(), *backbone.grid(), backbone.n_prefix) == tuple(map(int, of_activations.groups()))
    known = configured_spec(cfg)
    assert not backbone.spec().differences(known)


LICENCE = re.compile(r"^# Licence: (.+), (gated|open)\.$", re.MULTILINE)


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_help_says_what_an_encoder_eats_and_whether_its_weights_are_gated(path):
    licence = LICENCE.search(path.read_text())
    cfg = config.compose([f"backbone={path.stem}"]).backbone
    shown = [line.split() for line in Path("conf/hydra/help/loupe.yaml").read_text().splitlines()]
    (given,) = [words[1:] for words in shown if words[:1] == [path.stem]] or [None]
    if path.stem.startswith("random_"):
        assert licence is None
        assert given is None
        return
    assert licence is not None, f"{path} does not state its licence: see the other presets"
    of_activations = ACTIVATIONS.search(path.read_text())
    height, width = size_pair(cfg.image_size)
    edge = str(height) if height == width else f"{height}x{width}"
    taken = [edge, cfg.get("interpolation", "bicubic"), cfg.tokens, of_activations[1], "wide"]
    assert given == [*taken, licence[2], *licence[1].split()]
