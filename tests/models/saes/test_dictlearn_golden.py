"""The presets named after dictionary_learning follow its own numbers: those with k, and the ReLU ones."""

import numpy as np
import pytest
import torch

from src.models.saes.core import SAECore
from src.models.saes.k_sparse import KSparse
from src.models.saes.step import TrainingProgress
from tests.models.saes.golden import PARAMETERS, Training, compose_sae, golden_files, train

pytestmark = pytest.mark.golden

PRESETS = {
    "BatchTopKTrainer": "batch_topk_dictlearn",
    "TopKTrainer": "topk_dictlearn",
    "MatryoshkaBatchTopKTrainer": "matryoshka_dictlearn",
    "StandardTrainer": "standard_dictlearn",
    "StandardTrainerAprilUpdate": "standard_april_dictlearn",
}


def _options(settings):
    """The settings of a file in our names."""
    options = {"n_latents": settings["dict_size"]}
    if "l1_penalty" in settings:
        return options | {
            "l1_coefficient": settings["l1_penalty"],
            "sparsity_warmup_steps": settings["sparsity_warmup_steps"],
            "resample_every": settings.get("resample_steps"),
        }
    changed = settings["_overridden_attributes"]
    options |= {
        "k": settings["k"],
        "k_anneal_steps": settings["_constructor_args"].get("k_anneal_steps"),
        "aux_coefficient": settings["auxk_alpha"],
        "threshold_decay": settings["threshold_beta"],
        "threshold_start_step": settings["threshold_start_step"] + 1,
        "k_aux": settings.get("top_k_aux"),
        "dead_after": changed.get("dead_feature_threshold", 10_000_000),
    }
    if "group_fractions" in settings:
        options |= {name: settings[name] for name in ("group_fractions", "group_weights")}
    return options


def _schedule(settings):
    schedule = {"warmup_steps": settings["warmup_steps"], "warmup_from_zero": True}
    if settings.get("resample_steps"):
        return schedule | {"restart_every": settings["resample_steps"]}
    if settings["decay_start"] is None:
        return schedule
    steps = settings["steps"]
    return schedule | {"decay_fraction": 1 - settings["decay_start"] / steps, "total_steps": steps}


def _ours(golden, prefix):
    """A state of the reference in our names and orientation."""
    names = {"bias": "b_dec", "b_dec": "b_dec", "encoder.bias": "b_enc", "b_enc": "b_enc"}
    state = {}
    for name in golden.arrays:
        if not name.startswith(f"{prefix}/"):
            continue
        key, value = name.removeprefix(f"{prefix}/"), golden.tensor(name)
        if key in ("encoder.weight", "W_enc"):
            state["W_enc"] = value if key == "encoder.weight" else value.T
        elif key in ("decoder.weight", "W_dec"):
            state["W_dec"] = value.T if key == "decoder.weight" else value
        elif key in names:
            state[names[key]] = value
        elif key == "threshold":
            state["threshold"] = value
    return state


def _assert_state(golden, prefix, sae):
    state = _ours(golden, prefix)
    assert state
    for name, expected in state.items():
        np.testing.assert_allclose(
            getattr(sae, name).detach(), expected, **PARAMETERS, err_msg=f"{golden.name} {prefix} {name}"
        )


def _start(golden):
    settings = golden.settings
    sae = compose_sae(PRESETS[settings["trainer_class"]], settings["activation_dim"], **_options(settings))
    with torch.no_grad():
        for name, value in _ours(golden, "init").items():
            getattr(sae, name).copy_(value)
    return sae


def _files(golden_dir):
    return [
        golden
        for golden in golden_files(golden_dir, "dictionary_learning/*.npz")
        if golden.settings["trainer_class"] in PRESETS
    ]


def _assert_step(golden, index, sae, step, lr, norm):
    settings, losses = golden.settings, {name: value.item() for name, value in step.losses.items()}
    golden.assert_trace("loss", index, step.loss.item())
    golden.assert_trace("l0", index, step.metrics["l0"].item())
    golden.assert_trace("lr", index, lr)
    if "trace/grad_norm_pre_clip" in golden.arrays:
        golden.assert_trace("grad_norm_pre_clip", index, norm)
    if "k" not in settings:
        golden.assert_trace("mse_loss", index, losses["mse"])
        weight = settings["l1_penalty"] * golden.arrays["trace/sparsity_scale"][index]
        if weight:
            golden.assert_trace("sparsity_loss", index, losses["l1"] / weight)
        assert weight or losses["l1"] == 0
        if "trace/steps_since_active" in golden.arrays:
            np.testing.assert_array_equal(sae.silent_for, golden.arrays["trace/steps_since_active"][index])
        return
    golden.assert_trace("l2_loss", index, losses["mse"])
    golden.assert_trace("auxk_loss", index, losses.get("aux", 0.0) / settings["auxk_alpha"])
    golden.assert_trace("threshold", index, float(sae.threshold))
    np.testing.assert_array_equal(sae.silent_for, golden.arrays["trace/num_tokens_since_fired"][index])
    dead = int((sae.silent_for >= sae.dead_after).sum())
    assert dead == golden.arrays["trace/dead_features"][index]


@pytest.mark.slow
def test_traces_and_weights(golden_dir, monkeypatch):
    for golden in _files(golden_dir):
        sae, settings = _start(golden), golden.settings
        batches = golden.tensor("x_train")
        sae.initialize_from_(batches[0])
        clip = None if settings["trainer_class"] == "StandardTrainer" else 1.0
        betas = (0.9, 0.999)
        draws = _replay_draws(golden, monkeypatch)
        for index, step, lr, norm in train(sae, batches, Training(settings["lr"], betas, clip, _schedule(settings))):
            _assert_step(golden, index, sae, step, lr, norm)
            if "trace/k" in golden.arrays:
                assert sae.k_at(TrainingProgress(index)) == golden.arrays["trace/k"][index]
            if index == 0:
                _assert_state(golden, "after_step0", sae)
        _assert_state(golden, "final", sae)
        assert not draws
        _assert_evaluation(golden, sae)


def _replay_draws(golden, monkeypatch):
    """Hands out the recorded rows, after the weights they were drawn with agree."""
    recorded = sorted({name.split("/")[1] for name in golden.arrays if name.startswith("resample/")}, key=int)

    def multinomial(weights, n_samples, **_):
        draw = recorded.pop(0)
        expected = golden.arrays[f"resample/{draw}/weights"]
        np.testing.assert_allclose(weights / weights.sum(), expected / expected.sum(), rtol=1e-4)
        indices = golden.tensor(f"resample/{draw}/indices")
        assert n_samples == len(indices)
        return indices

    if recorded:
        monkeypatch.setattr(torch, "multinomial", multinomial)
    return recorded


def _assert_evaluation(golden, sae):
    sae.eval()
    x = golden.tensor("x_eval")
    golden.assert_close("eval/encode", sae.encode(x).to_dense())
    golden.assert_close("eval/decode", sae.reconstruct(x))
    if not isinstance(sae, KSparse):
        return
    by_threshold = SAECore.encode_inputs(sae, sae.centre(x))
    golden.assert_close("eval/encode_use_threshold_true", by_threshold.to_dense())
    kept = sae.select(sae.product(sae.centre(sae.normalize(x)[0])), sae.k)
    golden.assert_close("eval/encode_use_threshold_false", kept.to_dense())
