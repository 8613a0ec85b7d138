"""Formats without stored checkpoints: files made from their key tables encode as their formulas say."""

import json
import sys
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file

from src.models.saes.batch_topk import BatchTopK
from src.models.saes.gated import Gated
from src.models.saes.jumprelu import JumpReLU
from src.models.saes.matryoshka_batch_topk import MatryoshkaBatchTopK
from src.models.saes.relu_l1 import ReLUL1
from src.models.saes.topk import TopK
from src.safe_pickle import StandIn
from src.stores.importers.imported import build_sae
from src.stores.importers.registry import import_sae
from src.stores.importers.settings import fractions_of
from src.stores.importers.source import Source
from tests.stores.importers.foreign import (
    D_IN,
    N_LATENTS,
    K,
    decoded,
    four,
    keep_top_k,
    layer_norm,
    linear,
    pre_latents,
    weights,
)

TOLERANCE = {"rtol": 1e-5, "atol": 2e-5}


def _assert_imports(path, format_name, sae_class, latents, reconstruction, x):
    source = Source(path)
    name, imported = import_sae(source)
    sae = build_sae(imported, source.weights)
    assert name == format_name
    assert type(sae) is sae_class
    assert latents.count_nonzero() > 0
    ours = sae.encode(x)
    torch.testing.assert_close(ours.to_dense(), latents, **TOLERANCE)
    torch.testing.assert_close(sae.reconstruct(x).detach(), reconstruction, **TOLERANCE)
    return imported


@pytest.fixture
def w():
    return weights()


def test_openai_topk(tmp_path, w):
    state = linear(w, "pre_bias", "latent_bias", stats_last_nonzero=torch.zeros(N_LATENTS, dtype=torch.long))
    state |= {"activation": "TopK", "activation_state_dict": {"k": K, "postact_fn": "ReLU"}}
    torch.save(state | {"latents_activation_frequency": torch.ones(N_LATENTS)}, tmp_path / "8.pt")
    rows, mean, scale = layer_norm(w["x"])
    latents = keep_top_k(pre_latents(w, rows))
    imported = _assert_imports(tmp_path, "openai", TopK, latents, decoded(w, latents) * scale + mean, w["x"])
    assert imported.facts == {"activation": "TopK", "k": K, "postact_fn": "ReLU"}
    assert len(imported.assumed) == 2


def test_openai_relu(tmp_path, w):
    torch.save(linear(w, "pre_bias", "latent_bias"), tmp_path / "8.pt")
    latents = pre_latents(w, w["x"]).relu()
    _assert_imports(tmp_path / "8.pt", "openai", ReLUL1, latents, decoded(w, latents), w["x"])


@pytest.mark.parametrize("has_axis", [True, False])
def test_dncbm(tmp_path, w, has_axis):
    state = {"tied_bias": w["b_dec"], "encoder._weight": w["W_enc"].T, "encoder._bias": w["b_enc"]}
    state |= {"decoder._weight": w["W_dec"].T, "pre_encoder_bias._bias_reference": w["b_dec"]}
    torch.save({key: value[None] if has_axis else value for key, value in state.items()}, tmp_path / "a.pt")
    latents = pre_latents(w, w["x"]).relu()
    _assert_imports(tmp_path, "dncbm", ReLUL1, latents, decoded(w, latents), w["x"])


def _save_saev(path, header, state):
    with open(path, "wb") as file:
        file.write((json.dumps(header) + "\n").encode())
        torch.save(state, file)


_SAEV_RELU = {"cls": "Relu", "params": {"kind": "relu", "sparsity": {"cls": "L1Sparsity", "params": {"coeff": 4e-4}}}}


@pytest.mark.parametrize(
    ("header", "is_subtracted"),
    [
        ({"schema": 5, "cfg": {"d_model": D_IN, "d_sae": N_LATENTS, "activation": _SAEV_RELU}, "lib": "1"}, False),
        ({"schema": 2, "cfg": {"d_vit": D_IN, "activation": {"cls": "Relu", "params": {}}}}, False),
        ({"schema": 1, "cls": "SparseAutoencoderConfig", "cfg": {"activation": {"cls": "Relu", "params": {}}}}, False),
        ({"schema": 1, "cls": "Relu", "cfg": {"d_vit": D_IN, "exp_factor": 2}}, True),
        ({"d_vit": D_IN, "exp_factor": 2, "sparsity_coeff": 1e-4, "ghost_grads": False}, True),
    ],
)
def test_saev_relu(tmp_path, w, header, is_subtracted):
    _save_saev(tmp_path / "sae.pt", header, four(w))
    latents = pre_latents(w, w["x"], is_subtracted).relu()
    imported = _assert_imports(tmp_path, "saev", ReLUL1, latents, decoded(w, latents), w["x"])
    assert imported.facts == header
    assert ("not subtracted" in imported.assumed[0]) != is_subtracted


@pytest.mark.parametrize("threshold", [0.0, 0.9])
def test_saev_batch_topk(tmp_path, w, threshold):
    activation = {"cls": "BatchTopK", "params": {"kind": "batch-top-k", "top_k": K, "momentum": 0.1}}
    header = {"schema": 5, "cfg": {"d_model": D_IN, "d_sae": N_LATENTS, "activation": activation}}
    _save_saev(tmp_path / "sae.pt", header, four(w, **{"activation.threshold": torch.tensor(threshold)}))
    pre = pre_latents(w, w["x"], subtract=False)
    latents = pre * (pre > threshold)
    imported = _assert_imports(tmp_path, "saev", BatchTopK, latents, decoded(w, latents), w["x"])
    assert imported.arguments["k"] == K


_PRISMA = {"architecture": "standard", "activation_fn_str": "relu", "activation_fn_kwargs": {}, "hook_point_layer": 9}


@pytest.mark.parametrize("norm", ["layer_norm", "none"])
@pytest.mark.parametrize("activation", ["relu", "topk"])
def test_prisma_weights_and_config(tmp_path, w, norm, activation):
    config = _PRISMA | {"normalize_activations": norm, "dtype": {"__type__": "torch.dtype", "value": "torch.float32"}}
    config |= {"activation_fn_str": activation, "activation_fn_kwargs": {"k": K} if activation == "topk" else {}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    torch.save(four(w), tmp_path / "weights.pt")
    rows, mean, scale = layer_norm(w["x"]) if norm == "layer_norm" else (w["x"], 0.0, 1.0)
    pre = pre_latents(w, rows)
    latents = keep_top_k(pre) if activation == "topk" else pre.relu()
    sae_class = TopK if activation == "topk" else ReLUL1
    imported = _assert_imports(tmp_path, "prisma", sae_class, latents, decoded(w, latents) * scale + mean, w["x"])
    assert imported.facts == config


def _as_object(values):
    """Pickles as an instance of a class that only the writer has."""
    made = type("VisionModelSAERunnerConfig", (StandIn,), {"__module__": "vit_prisma.sae.config"})
    instance = object.__new__(made)
    vars(instance).update(values)
    return instance


@pytest.fixture
def save_object(monkeypatch):
    """Saves {cfg: object, state_dict}; the class is gone when the file is read."""

    def save(path, values, state):
        config = _as_object(values)
        names = ["vit_prisma", "vit_prisma.sae", "vit_prisma.sae.config"]
        with monkeypatch.context() as patch:
            for name in names:
                patch.setitem(sys.modules, name, ModuleType(name))
            sys.modules[names[-1]].VisionModelSAERunnerConfig = type(config)
            torch.save({"cfg": config, "state_dict": state}, path)

    return save


def test_prisma_pickle(tmp_path, w, save_object):
    values = _PRISMA | {"normalize_activations": "layer_norm", "device": torch.device("cpu"), "dtype": torch.float32}
    save_object(tmp_path / "n_images_1.pt", values, four(w))
    rows, mean, scale = layer_norm(w["x"])
    latents = pre_latents(w, rows).relu()
    imported = _assert_imports(tmp_path, "prisma", ReLUL1, latents, decoded(w, latents) * scale + mean, w["x"])
    assert imported.facts["dtype"] == "torch.float32"


def test_prisma_gated(tmp_path, w):
    (tmp_path / "config.json").write_text(
        json.dumps(_PRISMA | {"architecture": "gated", "normalize_activations": None})
    )
    extra = {"b_gate": w["b_enc"] - 0.5, "r_mag": w["b_enc"] / 3, "b_mag": w["b_enc"].flip(0)}
    torch.save(four(w, **extra), tmp_path / "weights.pt")
    h = (w["x"] - w["b_dec"]) @ w["W_enc"]
    latents = (h + extra["b_gate"] > 0) * (h * extra["r_mag"].exp() + extra["b_mag"]).relu()
    _assert_imports(tmp_path, "prisma", Gated, latents, decoded(w, latents), w["x"])


def test_sparsify(tmp_path, w):
    state = linear(w, "b_dec")
    del state["decoder.weight"]
    save_file(state | {"W_dec": w["W_dec"]}, tmp_path / "sae.safetensors")
    config = {"activation": "topk", "expansion_factor": 4, "k": K, "transcode": False, "d_in": D_IN, "num_latents": 0}
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    latents = keep_top_k(pre_latents(w, w["x"]))
    _assert_imports(tmp_path, "sparsify", TopK, latents, decoded(w, latents), w["x"])


def _save_sae1n(folder, model, state, **settings):
    (folder / "checkpoints").mkdir()
    torch.save(state, folder / "checkpoints" / "sae_best.pt")
    sae = {"model_type": model, "act_size": D_IN, "dict_size": N_LATENTS, "input_unit_norm": False, **settings}
    (folder / "checkpoints" / "config_best.json").write_text(json.dumps({"seed": 0, "sae": sae}))


def test_sae1n_vanilla(tmp_path, w):
    _save_sae1n(tmp_path, "VanillaSAE", four(w), input_unit_norm=True)
    rows, mean, scale = layer_norm(w["x"])
    latents = pre_latents(w, rows).relu()
    _assert_imports(tmp_path, "sae1n", ReLUL1, latents, decoded(w, latents) * scale + mean, w["x"])


def test_sae1n_jumprelu(tmp_path, w):
    log_threshold = w["b_enc"].flip(0)
    _save_sae1n(tmp_path, "JumpReLUSAE", four(w, **{"jumprelu.log_threshold": log_threshold}))
    pre = pre_latents(w, w["x"], subtract=False).relu()
    latents = pre * (pre > log_threshold.exp())
    imported = _assert_imports(tmp_path, "sae1n", JumpReLU, latents, decoded(w, latents), w["x"])
    assert imported.folded


def _save_saelens(folder, state, **config):
    save_file({name: value.contiguous() for name, value in state.items()}, folder / "sae_weights.safetensors")
    config = {"d_in": D_IN, "d_sae": N_LATENTS, "apply_b_dec_to_input": True, **config}
    (folder / "cfg.json").write_text(json.dumps(config))


def test_saelens_with_unfolded_input_factor(tmp_path, w):
    _save_saelens(tmp_path, four(w), architecture="standard", normalize_activations="expected_average_only_in")
    (tmp_path / "activation_scaler.json").write_text('{"scaling_factor": 0.4, "has_whitening": false}')
    latents = pre_latents(w, w["x"] * 0.4).relu()
    imported = _assert_imports(tmp_path, "saelens", ReLUL1, latents, decoded(w, latents) / 0.4, w["x"])
    assert "activation_scaler.json" in imported.folded[0]


def test_saelens_5(tmp_path, w):
    settings = {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}, "normalize_activations": "none"}
    _save_saelens(tmp_path, four(w), architecture="standard", finetuning_scaling_factor=False, **settings)
    latents = keep_top_k(pre_latents(w, w["x"]))
    _assert_imports(tmp_path, "saelens", TopK, latents, decoded(w, latents), w["x"])


def test_saelens_matryoshka_keeps_its_groups(tmp_path, w):
    state = four(w, topk_threshold=torch.tensor(0.5, dtype=torch.float64))
    _save_saelens(tmp_path, state, architecture="matryoshka_batchtopk", k=K, matryoshka_widths=[3, 10])
    source = Source(tmp_path)
    sae = build_sae(import_sae(source)[1], source.weights)
    assert isinstance(sae, MatryoshkaBatchTopK)
    assert sae.group_sizes == [3, 7, 10]


def test_fractions_give_their_sizes_back():
    for sizes in ([29, 71], [1] * 49, [57, 43, 28, 2], [5]):
        n_latents = sum(sizes)
        assert [int(one * n_latents) for one in fractions_of(sizes)] == sizes
        sae = MatryoshkaBatchTopK(4, n_latents, k=1, group_fractions=fractions_of(sizes))
        assert sae.group_sizes == sizes
