import subprocess
import sys

import pytest

from src.activation_spec import UNKNOWN, ActivationSpec
from src.models.backbones.spec import configured_spec, describe_weights

BACKBONE = {"_target_": "some.Backbone", "name": "vit", "model_name": "vit_tiny", "tokens": "patch", "image_size": 224}


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (None, "output"),
        ("output", "output"),
        (3, "3"),
        ("3", "3"),
        (-2, UNKNOWN),
        ("blocks.3", UNKNOWN),
        ([1], UNKNOWN),
    ],
)
def test_layer_is_known_where_the_configuration_says_it(layer, expected):
    assert configured_spec({**BACKBONE, "layer": layer}).layer == expected


def test_one_of_several_layers():
    assert configured_spec({**BACKBONE, "layer": [2, 5]}, layer=5) == configured_spec({**BACKBONE, "layer": 5})


def test_grid_is_known_of_pooled_tokens_alone():
    assert configured_spec(BACKBONE).grid == UNKNOWN
    assert configured_spec({**BACKBONE, "tokens": "mean"}).grid == "1x1"


def test_input_and_transform():
    spec = configured_spec({**BACKBONE, "image_size": [224, 112], "resize": "crop", "crop_pct": 0.9})
    assert spec.input_size == "224x112"
    assert spec.transform.startswith("resize 224x112 bicubic, centre crop of 0.9, mean [0.485")
    assert (spec.patch_size, spec.mpp) == ("none", "none")
    assert configured_spec({**BACKBONE, "image_size": [224, 224]}) == configured_spec(BACKBONE)


@pytest.mark.parametrize("option", [{"resize": "pad"}, {"resize": "crop"}, {"intensity": "min_max"}])
def test_images_that_are_prepared_otherwise_give_other_activations(option):
    assert configured_spec(BACKBONE).differences(configured_spec({**BACKBONE, **option})) == ["transform"]


def test_features_from_elsewhere_are_unknown():
    assert configured_spec({"name": "conch"}) == ActivationSpec()


def test_weights_of_a_folder_are_those_of_its_files(tmp_path):
    def described():
        return describe_weights({"pretrained": str(tmp_path)})

    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model-1.safetensors").write_bytes(b"first")
    one = described()
    assert one == describe_weights({"checkpoint": str(tmp_path / "model-1.safetensors")})
    (tmp_path / "model-2.safetensors").write_bytes(b"second")
    assert described() != one
    assert describe_weights({"pretrained": "openai"}) == "published openai"
    assert describe_weights({"checkpoint": str(tmp_path / "none.pth")}) == UNKNOWN


def test_a_finished_run_needs_no_torch_for_it():
    code = "import sys, src.models.backbones.spec, src.folder_names; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
