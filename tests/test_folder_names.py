import pytest

from src.folder_names import computes_activations, features_folder

TILE = {"patch_size": 256, "patch_level": 1, "mpp": None, "step": None}
BACKBONE = {"_target_": "some.Backbone", "name": "vit", "layer": None, "tokens": "pooled", "image_size": 224}


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({}, "features_vit_224px"),
        ({"tokens": "patch"}, "features_vit_patch_224px"),
        ({"layer": 3, "tokens": "mean"}, "features_vit_layer3_mean_224px"),
        ({"layer": -2, "tokens": "all"}, "features_vit_layer-2_all_224px"),
        ({"layer": "blocks.3", "tokens": "cls"}, "features_vit_layerblocks.3_cls_224px"),
        ({"layer": [2, 5], "tokens": "cls"}, "features_vit_layer2+5_cls_224px"),
        ({"layer": [2, None], "tokens": "patch"}, "features_vit_layer2+output_patch_224px"),
        ({"image_size": [224, 112]}, "features_vit_224x112px"),
    ],
)
def test_folder_of_features_says_where_they_are_from(values, name):
    backbone = {**BACKBONE, **values}
    assert features_folder(backbone) == name
    assert features_folder(backbone, TILE) == f"{name}_256_level1"


def test_one_of_several_layers_has_the_folder_that_it_has_alone():
    several = {**BACKBONE, "layer": [2, 5], "tokens": "patch"}
    assert features_folder(several, None, 5) == features_folder({**several, "layer": 5})


def test_features_from_elsewhere_have_the_backbone_s_name_alone():
    assert features_folder({"name": "conch"}, TILE) == "features_conch"


CLASS = {"_target_": "some.Backbone", "name": "b"}


@pytest.mark.parametrize(
    ("values", "computes"),
    [
        ({}, True),  # of a user's own class, who knows
        ({"pretrained": True}, True),
        ({"pretrained": "owner/model"}, True),
        ({"pretrained": False}, True),
        ({"pretrained": None, "checkpoint": "w.bin"}, True),
        ({"pretrained": None, "seed": 0}, True),
        ({"pretrained": None, "checkpoint": None}, False),
        ({"pretrained": None}, False),
    ],
)
def test_a_backbone_computes_where_it_has_weights(values, computes):
    assert computes_activations(CLASS | values) is computes
    assert not computes_activations({"name": "b"} | values)
