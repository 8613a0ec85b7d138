"""Every backbone of conf/ is, at full size, what its comment says; without weights, on the meta device."""

import re
from pathlib import Path

import pytest
import torch

from src import config
from src.models.backbones.spec import configured_spec

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
