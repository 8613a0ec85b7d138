"""What an import would lose, or cannot be, is an error that names the file and the entry."""

import json
import os

import pytest
import torch
from safetensors.torch import save_file

from src.models.saes.relu_l1 import ReLUL1
from src.stores.importers.imported import ImportedSAE, build_sae
from src.stores.importers.registry import FORMATS, import_sae
from src.stores.importers.settings import plain, recorded_fvu
from src.stores.importers.source import Source
from tests.stores.importers.foreign import D_IN, N_LATENTS, K, four, linear, weights


@pytest.fixture
def w():
    return weights()


def _torch_folder(folder, state, name="ae.pt", **files):
    folder.mkdir(exist_ok=True)
    torch.save(state, folder / name)
    for stem, content in files.items():
        (folder / f"{stem}.json").write_text(json.dumps(content))
    return folder


def _saelens(folder, state, **config):
    config = {"architecture": "standard", "d_in": D_IN, "d_sae": N_LATENTS, **config}
    (folder / "cfg.json").write_text(json.dumps(config))
    save_file({name: value.contiguous() for name, value in state.items()}, folder / "sae_weights.safetensors")
    return folder


def _read(path, name="auto"):
    source = Source(path)
    return build_sae(import_sae(source, name)[1], source.weights)


def _dictionary(name):
    return {"trainer": {"dict_class": name}}


def test_missing_entries(tmp_path, w):
    state = linear(w, "bias")
    del state["encoder.bias"]
    folder = _torch_folder(tmp_path, state, config=_dictionary("AutoEncoder"))
    with pytest.raises(ValueError, match=r"Expected encoder\.bias in .*ae\.pt"):
        _read(folder)


@pytest.mark.parametrize("entry", ["threshold", "k", "W_skip", "scaling_factor"])
def test_entries_that_would_be_lost(tmp_path, w, entry):
    state = linear(w, "bias", **{entry: torch.tensor(1.0)})
    folder = _torch_folder(tmp_path, state, config=_dictionary("AutoEncoder"))
    with pytest.raises(ValueError, match=rf"nothing more in .*ae\.pt, got \['{entry}'\]"):
        _read(folder)


@pytest.mark.parametrize("missing", ["threshold", "k"])
def test_missing_threshold_or_k(tmp_path, w, missing):
    state = linear(w, "b_dec", threshold=torch.tensor(0.1), k=torch.tensor(K))
    del state[missing]
    folder = _torch_folder(tmp_path, state, config=_dictionary("BatchTopKSAE"))
    with pytest.raises(ValueError, match=rf"Expected {missing} in .*ae\.pt"):
        _read(folder)


def test_shapes(tmp_path, w):
    state = linear(w, "bias") | {"decoder.weight": w["W_dec"]}
    folder = _torch_folder(tmp_path, state, config=_dictionary("AutoEncoder"))
    with pytest.raises(ValueError, match=r"Expected decoder\.weight of shape \(6, 20\) in .*ae\.pt, got \(20, 6\)"):
        _read(folder)
    state = linear(w, "bias") | {"encoder.weight": torch.ones(3)}
    folder = _torch_folder(tmp_path, state, config=_dictionary("AutoEncoder"))
    with pytest.raises(ValueError, match=r"encoder\.weight of shape \(any, any\) in .*, got \(3,\)"):
        _read(folder)


def test_sizes_of_the_configuration(tmp_path, w):
    with pytest.raises(ValueError, match=r"Expected W_enc of shape \(21, 6\) for ReLUL1 from .*, got \(20, 6\)"):
        _read(_saelens(tmp_path, four(w), d_sae=N_LATENTS + 1))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_values_that_are_not_finite(tmp_path, w, value):
    w["b_enc"][3] = value
    with pytest.raises(ValueError, match=r"Expected finite values of b_enc in .*safetensors"):
        _read(_saelens(tmp_path, four(w)))


def test_entries_that_are_no_tensors(tmp_path, w):
    folder = _torch_folder(tmp_path, linear(w, "bias") | {"bias": "zero"}, config=_dictionary("AutoEncoder"))
    with pytest.raises(ValueError, match=r"Expected a dense tensor as bias in .*ae\.pt, got str"):
        _read(folder)
    folder = _torch_folder(tmp_path, [w["W_enc"]], config=_dictionary("AutoEncoder"))
    with pytest.raises(ValueError, match=r"Expected named tensors in .*ae\.pt, got list"):
        _read(folder)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"architecture": "skip_transcoder"}, "architecture"),
        ({"activation_fn_str": "tanh-relu"}, "architecture"),
        ({"normalize_activations": "constant_norm_rescale"}, "normalize_activations"),
        ({"normalize_activations": "covariance_whitening"}, "normalize_activations"),
        ({"reshape_activations": "else"}, "reshape_activations"),
        ({"architecture": "topk"}, "k"),
        ({"architecture": "topk", "k": 2.5}, "k"),
        ({"d_in": None}, "d_in"),
    ],
)
def test_saelens_settings_without_an_equal(tmp_path, w, config, named):
    with pytest.raises(ValueError, match=rf"Expected (a whole )?{named} .*cfg\.json"):
        _read(_saelens(tmp_path, four(w), **config))


def test_an_input_factor_that_is_not_there(tmp_path, w):
    folder = _saelens(tmp_path, four(w), normalize_activations="expected_average_only_in")
    with pytest.raises(FileNotFoundError, match=r"Expected activation_scaler\.json beside"):
        _read(folder)
    (folder / "activation_scaler.json").write_text('{"scaling_factor": null, "has_whitening": true}')
    with pytest.raises(ValueError, match=r"no whitening in activation_scaler\.json"):
        _read(folder)


@pytest.mark.parametrize("entry", ["transcode", "skip_connection", "signed"])
def test_sparsify_settings_without_an_equal(tmp_path, w, entry):
    state = linear(w, "b_dec") | {"W_dec": w["W_dec"]}
    del state["decoder.weight"]
    save_file(state, tmp_path / "sae.safetensors")
    (tmp_path / "cfg.json").write_text(json.dumps({"k": K, "d_in": D_IN, entry: True}))
    with pytest.raises(ValueError, match=rf"Expected {entry} among \[False\] in .*cfg\.json, got True"):
        _read(tmp_path)
    (tmp_path / "cfg.json").write_text(json.dumps({"k": K, "d_in": D_IN, "activation": "groupmax"}))
    with pytest.raises(ValueError, match="got 'groupmax'"):
        _read(tmp_path)


def test_latents_below_zero(tmp_path, w):
    state = linear(w, "pre_bias", "latent_bias", activation="TopK")
    state["activation_state_dict"] = {"k": K, "postact_fn": "Identity"}
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"postact_fn among \['ReLU'\].*below zero"):
        _read(tmp_path)


@pytest.mark.parametrize("cls", ["TopK", "BatchTopK"])
def test_saev_without_threshold(tmp_path, w, cls):
    with open(tmp_path / "sae.pt", "wb") as file:
        header = {"schema": 2, "cfg": {"activation": {"cls": cls, "params": {"top_k": K}}}}
        file.write((json.dumps(header) + "\n").encode())
        torch.save(four(w), file)
    expected = "below zero" if cls == "TopK" else r"Expected activation\.threshold"
    with pytest.raises(ValueError, match=expected):
        _read(tmp_path)


def test_saev_headers(tmp_path, w):
    (tmp_path / "sae.pt").write_bytes(b"{no json\n")
    with pytest.raises(ValueError, match=r"Expected a line of JSON at the start of .*sae\.pt"):
        _read(tmp_path)
    (tmp_path / "sae.pt").write_bytes(b'{"schema": 6}\n')
    with pytest.raises(ValueError, match="Expected schema among"):
        _read(tmp_path, "saev")


def test_components(tmp_path, w):
    state = {"tied_bias": w["b_dec"], "encoder._weight": w["W_enc"].T, "encoder._bias": w["b_enc"]}
    state["decoder._weight"] = w["W_dec"].T
    torch.save({key: torch.stack([value, value]) for key, value in state.items()}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"Expected one component in .*a\.pt, got 2"):
        _read(tmp_path)
    torch.save(state | {"post_decoder_bias._bias_reference": w["b_dec"] + 1}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"_bias_reference equal to tied_bias in .*a\.pt"):
        _read(tmp_path)


def test_gated_patchsae(tmp_path, w):
    torch.save({"config": {"gated_sae": True}, "state_dict": four(w)}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"Expected gated_sae among \[False\] in .*a\.pt"):
        _read(tmp_path)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"normalize_activations": "constant_norm_rescale"}, "normalize_activations"),
        ({"activation_fn_str": "leaky_relu"}, "activation_fn_str"),
        ({"activation_fn_str": "topk", "activation_fn_kwargs": {}}, "k"),
        ({"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 2, "postact_fn": "Identity"}}, "postact_fn"),
        ({"architecture": "jumprelu"}, "architecture"),
        ({"architecture": "gated", "activation_fn_str": "topk"}, "activation_fn_str"),
        ({"is_transcoder": True}, "is_transcoder"),
    ],
)
def test_prisma_settings_without_an_equal(tmp_path, w, config, named):
    config = {"normalize_activations": "none", "activation_fn_str": "relu", **config}
    folder = _torch_folder(tmp_path, four(w), "weights.pt", config=config)
    with pytest.raises(ValueError, match=rf"Expected {named} .*config\.json"):
        _read(folder)


def test_prisma_needs_its_norm(tmp_path, w):
    folder = _torch_folder(tmp_path, four(w), "weights.pt", config={"hook_point_layer": 9})
    with pytest.raises(ValueError, match=r"Expected normalize_activations in the configuration in .*config\.json"):
        _read(folder)


@pytest.mark.parametrize("name", FORMATS)
def test_files_of_no_format(tmp_path, name):
    torch.save({"layer.weight": torch.ones(2)}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"got none of them; it holds \['layer\.weight'\]"):
        _read(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=r"Expected .*a\.pt"):
        _read(tmp_path, name)


@pytest.mark.parametrize("name", ["dictionary_learning", "sae1n", "saelens", "sparsify"])
def test_missing_configurations(tmp_path, w, name):
    torch.save(four(w), tmp_path / "ae.pt")
    with pytest.raises(FileNotFoundError, match=r"Expected (cfg|config|config_ae)\.json beside .*ae\.pt"):
        _read(tmp_path, name)


def test_unknown_formats(tmp_path, w):
    torch.save(four(w), tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"Expected convert\.format among \['auto', .*got 'sealens'"):
        _read(tmp_path, "sealens")


def test_places(tmp_path):
    with pytest.raises(FileNotFoundError, match="found nothing"):
        Source(tmp_path / "no")
    with pytest.raises(FileNotFoundError, match=r"weights .* in .*found \[\]"):
        Source(tmp_path)
    for name in ("a.pt", "b.pt"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"one file of weights in .*'a\.pt', 'b\.pt'.*name the file"):
        Source(tmp_path)


@pytest.mark.parametrize("text", ["[1]", "{cut"])
def test_configurations_that_are_none(tmp_path, w, text):
    folder = _torch_folder(tmp_path, four(w))
    (folder / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"Expected (a )?JSON .*config\.json"):
        _read(folder)


def test_damaged_safetensors(tmp_path):
    (tmp_path / "sae_weights.safetensors").write_bytes(b"{nothing of the kind")
    (tmp_path / "cfg.json").write_text('{"d_sae": 3}')
    with pytest.raises(ValueError, match=r"Expected safetensors in .*sae_weights\.safetensors"):
        _read(tmp_path)


def test_states_that_do_not_fit_their_class(tmp_path, w):
    state = {"W_enc": w["W_enc"].T, "b_enc": w["b_enc"], "W_dec": w["W_dec"]}
    arguments = {"d_in": D_IN, "n_latents": N_LATENTS}
    with pytest.raises(ValueError, match=r"'b_dec'.* for ReLUL1 from a\.pt"):
        build_sae(ImportedSAE(ReLUL1, arguments, state), "a.pt")
    with pytest.raises(ValueError, match=r"for ReLUL1 from a\.pt, got .*'r_mag'"):
        build_sae(ImportedSAE(ReLUL1, arguments, state | {"b_dec": w["b_dec"], "r_mag": w["b_enc"]}), "a.pt")


class Call:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("key", ["cfg", "config"])
@pytest.mark.parametrize("name", ["auto", *FORMATS])
def test_hostile_files_run_nothing(tmp_path, w, key, name):
    mark = tmp_path / "executed"
    hostile = {key: {"d_in": 8, "nested": [Call(mark)]}, "state_dict": four(w)} | four(w)
    folder = _torch_folder(
        tmp_path / "run", hostile, "sae_best.pt", config={"trainer": {"dict_class": "AutoEncoder"}}, config_best={}
    )
    for stem in ("cfg", "config"):
        (folder / f"{stem}.json").write_text(
            json.dumps({"k": 1, "d_in": 8, "d_sae": 8, "trainer": {"dict_class": "AutoEncoder"}})
        )
    (folder / "config_best.json").write_text(json.dumps({"sae": {"model_type": "VanillaSAE"}}))
    with pytest.raises(ValueError, match=r"sae_best\.pt") as caught:
        _read(folder, name)
    if name != "saev":  # which asks for its header first
        assert "posix.system" in str(caught.value)
    assert not mark.exists()


def test_recorded_numbers():
    assert recorded_fvu(None, {"fvu": 0.25, "explained_variance": 0.1}) == 0.25
    assert recorded_fvu({"l0": 3}, {"frac_variance_explained": 0.875}) == 0.125
    assert recorded_fvu({"explained_variance": None}, {}) is None


def test_settings_become_json():
    values = {"a": (1, torch.float16), 2: {"b": torch.device("cpu")}, "c": None, "d": object()}
    assert plain(values) == {"a": [1, "torch.float16"], "2": {"b": "cpu"}, "c": None, "d": "<object>"}
