"""The presets jumprelu_sae1n and jumprelu_dictlearn follow the numbers of the systems they are named after."""

import math

import numpy as np
import pytest
import torch

from src.models.saes import penalized
from tests.models.saes.golden import TRACE, Training, compose_sae, golden_files, train
from tests.models.saes.golden_lightning import train_with_lightning

pytestmark = [
    pytest.mark.golden,
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),
]

STATES = {
    "sae1n": ("W_enc", "b_enc", "W_dec", "b_dec", "jumprelu.log_threshold"),
    "dictionary_learning": ("W_enc", "b_enc", "W_dec", "b_dec", "threshold"),
}


def _start(golden, system):
    """Returns the SAE and how it is trained, by the file's settings."""
    settings = golden.settings
    if system == "sae1n":
        sae = compose_sae(
            "jumprelu_sae1n",
            settings["act_size"],
            n_latents=settings["dict_size"],
            l0_coefficient=settings["l1_coeff"],
            bandwidth=settings["bandwidth"],
            input_norm="z_score" if settings["input_unit_norm"] else "none",
            dead_after=settings["n_batches_to_dead"],
        )
        training = Training(settings["lr"], (settings["beta1"], settings["beta2"]), settings["max_grad_norm"])
    else:
        sae = compose_sae(
            "jumprelu_dictlearn",
            settings["activation_dim"],
            n_latents=settings["dict_size"],
            l0_coefficient=settings["sparsity_penalty"],
            target_l0=settings["target_l0"],
            bandwidth=settings["bandwidth"],
            sparsity_warmup_steps=settings["sparsity_warmup_steps"],
        )
        passed = settings["_class_defaults"] | settings["_constructor_args"]
        schedule = {"warmup_steps": passed["warmup_steps"], "warmup_from_zero": True}
        if passed["decay_start"] is not None:
            steps = settings["steps"]
            schedule |= {"decay_fraction": 1 - passed["decay_start"] / steps, "total_steps": steps}
        training = Training(settings["lr"], (0.0, 0.999), 1.0, schedule)
    with torch.no_grad():
        for name in STATES[system]:
            _ours(sae, name).copy_(golden.tensor(f"init/{name}"))
    return sae, training


def _ours(sae, name):
    return sae.W_enc.T if name == "W_enc" else getattr(sae, name.split(".")[-1])


def _assert_state(golden, system, prefix, sae):
    for name in STATES[system]:
        golden.assert_close(f"{prefix}/{name}", _ours(sae, name))


@pytest.fixture(params=STATES)
def cases(request, golden_dir):
    return [(golden, request.param) for golden in golden_files(golden_dir, f"{request.param}/jumprelu*.npz")]


@pytest.mark.parametrize("is_sparse", [False, True])
def test_traces_and_weights(cases, is_sparse, monkeypatch):
    monkeypatch.setattr(penalized, "SPARSE_BELOW", math.inf if is_sparse else 0.0)
    for golden, system in cases:
        sae, training = _start(golden, system)
        batches = golden.tensor("x_train")
        sae.initialize_from_(batches[0])
        check = _assert_sae1n_step if system == "sae1n" else _assert_dictlearn_step
        threshold = sae.inference_threshold if system == "sae1n" else sae.threshold.detach().clone()
        for index, step, lr, norm in train(sae, batches, training):
            golden.assert_trace("loss", index, step.loss.item())
            golden.assert_trace("grad_norm_pre_clip", index, norm)
            # Counted as the references do: below a negative threshold, a latent of 0 counts too.
            l0 = (step.latents.to_dense() > threshold).sum(1).float().mean().item()
            golden.assert_trace("l0_norm" if system == "sae1n" else "l0", index, l0)
            check(golden, index, sae, step)
            threshold = sae.inference_threshold if system == "sae1n" else sae.threshold.detach().clone()
            if "trace/lr" in golden.arrays:
                golden.assert_trace("lr", index, lr)
            if index == 0 and f"after_step0/{STATES[system][0]}" in golden.arrays:
                _assert_state(golden, system, "after_step0", sae)
        _assert_state(golden, system, "final", sae)
        (_assert_sae1n_evaluation if system == "sae1n" else _assert_dictlearn_evaluation)(golden, sae.eval())


def _assert_sae1n_step(golden, index, sae, step):
    golden.assert_trace("l2_loss", index, step.losses["mse"].item())
    golden.assert_trace("l1_loss", index, step.losses["l0"].item())
    golden.assert_trace("l0_norm", index, step.metrics["l0"].item())
    golden.assert_trace("l1_norm", index, step.metrics["l0"].item())
    silent = sae.silent_for.numpy()
    np.testing.assert_array_equal(silent, golden.arrays["trace/num_batches_not_active"][index])
    assert (silent > sae.dead_after).sum() == golden.arrays["trace/num_dead_features"][index]
    assert (silent >= sae.dead_after).sum() == golden.arrays["trace/n_dead_ge"][index]
    assert (step.latents.to_dense().clamp_min(0).amax(0) == 0).sum() == golden.arrays["trace/n_dead_in_batch"][index]


def _assert_dictlearn_step(golden, index, sae, step):
    golden.assert_trace("l2_loss", index, step.losses["mse"].item())
    np.testing.assert_array_equal(sae.silent_for, golden.arrays["trace/num_tokens_since_fired"][index])
    assert (sae.silent_for >= sae.dead_after).sum() == golden.arrays["trace/dead_features"][index]


@torch.no_grad()
def _assert_sae1n_evaluation(golden, sae):
    np.testing.assert_array_equal(sae.silent_for, golden.arrays["final_num_batches_not_active"])
    x = golden.tensor("x_eval")
    statistics = sae.normalize(x)[1]
    step = sae.step(x)
    numbers = {"loss": step.loss, "l2_loss": step.losses["mse"], "l1_loss": step.losses["l0"]}
    numbers |= {"l0_norm": step.metrics["l0"], "l1_norm": step.metrics["l0"]}
    for name, value in numbers.items():
        golden.assert_close(f"eval/forward_{name}", value, **TRACE)
    for latents in (step.latents, sae.encode(x)):
        golden.assert_close("eval/forward_feature_acts", latents.to_dense())
        golden.assert_close("eval/forward_sae_out", sae.decode(latents, statistics))


def _assert_dictlearn_evaluation(golden, sae):
    x = golden.tensor("x_eval")
    golden.assert_close("eval/encode", sae.encode(x).to_dense())
    golden.assert_close("eval/decode", sae.reconstruct(x))


def test_lightning_training_ends_with_the_reference_weights(cases, tmp_path):
    for golden, system in cases:
        sae, training = _start(golden, system)
        train_with_lightning(sae, golden.tensor("x_train"), training, tmp_path)
        _assert_state(golden, system, "final", sae)
