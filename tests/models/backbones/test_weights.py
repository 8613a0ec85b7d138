"""Weights files of any kind are read whole, without running what is in them."""

import warnings

import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError, GatedRepoError
from safetensors.torch import save_file
from torch import nn

from src.models.backbones.weights import fetch_weights, load_weights, read_weights

WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2)}


def is_read(path):
    found = read_weights(path, "m")
    return found.keys() == WEIGHTS.keys() and all(torch.equal(found[key], WEIGHTS[key]) for key in WEIGHTS)


@pytest.mark.parametrize(
    "content",
    [
        WEIGHTS,
        {"state_dict": WEIGHTS, "epoch": 3},
        {"teacher": {f"module.{key}": value for key, value in WEIGHTS.items()}, "iteration": 3},
        {"model": {"state_dict": WEIGHTS}, "config": {"name": "m"}, "args": None},
    ],
)
def test_what_training_programs_wrap_weights_in_is_taken_off(content, tmp_path):
    torch.save(content, tmp_path / "w.pth")
    assert is_read(tmp_path / "w.pth")


def test_a_key_that_is_called_as_a_wrapper_is_none(tmp_path):
    torch.save({"model": torch.ones(2), "state_dict": {"epoch": 3}}, tmp_path / "w.pth")
    assert list(read_weights(tmp_path / "w.pth", "m")) == ["model"]


def test_safetensors_are_read_and_damaged_ones_told(tmp_path):
    save_file(WEIGHTS, tmp_path / "w.safetensors")
    assert is_read(tmp_path / "w.safetensors")
    (tmp_path / "w.safetensors").write_bytes(b"12345678 not")
    with pytest.raises(ValueError, match=r"w\.safetensors to hold weights as safetensors"):
        read_weights(tmp_path / "w.safetensors", "m")


def test_torchscript_archives_are_read(tmp_path):
    module = nn.Module()
    module.a = nn.Linear(3, 2)
    module.a.load_state_dict({"weight": WEIGHTS["a.weight"], "bias": WEIGHTS["a.bias"]})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # as OpenAI made them, years ago
        torch.jit.save(torch.jit.script(module), tmp_path / "w.pt")
    assert is_read(tmp_path / "w.pt")


def test_no_file_and_no_weights_are_told(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"weights of m at .*none\.pt, found none.*backbone\.checkpoint"):
        read_weights(tmp_path / "none.pt", "m")
    torch.save({"epoch": 3}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"w\.pt to hold the weights of m, found no tensors by name"):
        read_weights(tmp_path / "w.pt", "m")


def test_weights_of_half_precision_become_those_of_the_model():
    model = nn.Linear(3, 2)
    halves = {"weight": WEIGHTS["a.weight"].half(), "bias": WEIGHTS["a.bias"].half()}
    load_weights(model, halves, "w.pt", "m", halves)
    assert model.weight.dtype == torch.float32
    torch.testing.assert_close(model.weight.data, WEIGHTS["a.weight"])


def test_missing_unexpected_and_misshaped_keys_are_all_listed():
    model = nn.BatchNorm1d(4)
    wrong = {"weight": torch.ones(5), "gamma": torch.ones(4), "running_mean": torch.ones(4)}
    with pytest.raises(
        ValueError, match=r"w\.pt to hold the weights of m, got 2 missing \(bias, running_var\), 1 "
    ) as error:
        load_weights(model, wrong, "w.pt", "m", wrong)
    assert "1 unexpected (gamma), 1 of another shape (weight [5] instead of [4]). Its keys (weight" in str(error.value)


@pytest.mark.parametrize(
    ("problem", "message"), [(OSError("offline"), "offline.*Accept its licence"), (None, "found neither")]
)
def test_what_the_hub_does_not_give_is_told(problem, message, monkeypatch):
    def refuse(repository, name):
        raise problem or EntryNotFoundError("none")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    with pytest.raises(ValueError, match=message):
        fetch_weights("owner/model", ["a.bin", "b.bin"], "m")
    assert issubclass(GatedRepoError, OSError)
