"""Modules in files: reopened bit for bit, and nothing but ours."""

import json

import pytest
import torch

from src.activation_spec import ActivationSpec
from src.models.mil.attention import AttentionMIL
from src.models.mil.base import MILModel
from src.models.mil.classifier import BagClassifier
from src.records import FittedItem
from src.stores.modules import describe, load_module, save_module, spec_of

SPEC = ActivationSpec(model="vit", layer="3")


@pytest.fixture
def exported(tmp_path):
    torch.manual_seed(0)
    model = AttentionMIL(4, 3, n_hidden=8, n_attention=5, gated=True)
    classifier = BagClassifier(model, ("a", "b", "c"), "top_neurons", [7, 1, 2, 9]).eval()
    classifier.input_mean.copy_(torch.randn(4))
    classifier.input_factor.copy_(torch.rand(4))
    arguments = {"d_in": 4, "n_classes": 3, "n_hidden": 8, "n_attention": 5, "gated": True}
    whole = {"model": describe(model, arguments), "classes": ["a", "b", "c"], "input_name": "top_neurons"}
    fitted = [FittedItem("s1", "c1", "d1", 5)]
    save_module(classifier, tmp_path / "x", whole | {"neuron_ids": [7, 1, 2, 9]}, {"fold": 2}, fitted, SPEC)
    return classifier, tmp_path / "x"


def _change(folder, change):
    config = json.loads((folder / "cfg.json").read_text())
    change(config)
    (folder / "cfg.json").write_text(json.dumps(config))


def test_a_module_with_a_module_inside_is_reopened_bit_for_bit(exported):
    classifier, folder = exported
    loaded, metadata = load_module(folder, BagClassifier)
    assert not loaded.training
    assert (loaded.classes, loaded.neuron_ids) == (("a", "b", "c"), (7, 1, 2, 9))
    bag = torch.randn(6, 4)
    with torch.no_grad():
        for one, other in zip(classifier(bag), loaded(bag), strict=True):
            assert torch.equal(one, other)
    assert metadata["fold"] == 2
    assert spec_of(metadata) == SPEC
    assert (folder / "fitted_on.csv").read_text().count("s1") == 1


@pytest.mark.parametrize("target", [None, "os.system", "src.models.mil.none.Evil", "src.models.mil.base.torch"])
@pytest.mark.parametrize("inside", [False, True])
def test_only_our_modules_are_built(exported, target, inside):
    _, folder = exported
    _change(folder, lambda config: (config["model"] if inside else config).update(_target_=target))
    with pytest.raises(ValueError, match=r"Expected a _target_ that names a .*cfg\.json, got .*not exported by Loupe"):
        load_module(folder, BagClassifier)


def test_another_kind_of_module_is_refused(exported):
    with pytest.raises(ValueError, match="Expected a _target_ that names a MILModel"):
        load_module(exported[1], MILModel)


def test_a_state_of_another_module_is_refused(exported):
    _, folder = exported
    _change(folder, lambda config: config["model"].update(n_hidden=9))
    with pytest.raises(ValueError, match=r"state\.safetensors to fit cfg\.json"):
        load_module(folder, BagClassifier)


@pytest.mark.parametrize("name", ["cfg.json", "state.safetensors"])
def test_a_missing_file_is_named(exported, name):
    _, folder = exported
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"with {name} in .*task=train_mil"):
        load_module(folder, BagClassifier)
