"""The preset gated_dictlearn follows dictionary_learning's own numbers."""

import math

import pytest
import torch

from src.models.saes import penalized
from tests.models.saes.golden import Training, compose_sae, golden_files, train
from tests.models.saes.golden_lightning import train_with_lightning

pytestmark = [
    pytest.mark.golden,
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),
]

STATE = {
    "encoder.weight": "W_enc",
    "gate_bias": "b_enc",
    "mag_bias": "b_mag",
    "r_mag": "r_mag",
    "decoder.weight": "W_dec",
    "decoder_bias": "b_dec",
}


def _ours(sae, name):
    value = getattr(sae, STATE[name])
    return value.T if name == "decoder.weight" else value


def _assert_state(golden, prefix, sae):
    for name in STATE:
        golden.assert_close(f"{prefix}/{name}", _ours(sae, name))


def _start(golden):
    settings = golden.settings
    sae = compose_sae(
        "gated_dictlearn",
        settings["activation_dim"],
        n_latents=settings["dict_size"],
        l1_coefficient=settings["l1_penalty"],
        sparsity_warmup_steps=settings["sparsity_warmup_steps"],
    )
    schedule = {"warmup_steps": settings["warmup_steps"], "warmup_from_zero": True}
    if settings["decay_start"] is not None:
        steps = len(golden.arrays["x_train"])
        schedule |= {"decay_fraction": 1 - settings["decay_start"] / steps, "total_steps": steps}
    with torch.no_grad():
        for name in STATE:
            _ours(sae, name).copy_(golden.tensor(f"init/{name}"))
    return sae, Training(settings["lr"], (0.0, 0.999), None, schedule)


@pytest.mark.parametrize("is_sparse", [False, True])
def test_traces_and_weights(golden_dir, is_sparse, monkeypatch):
    monkeypatch.setattr(penalized, "SPARSE_BELOW", math.inf if is_sparse else 0.0)
    for golden in golden_files(golden_dir, "dictionary_learning/gated*.npz"):
        sae, training = _start(golden)
        batches = golden.tensor("x_train")
        sae.initialize_from_(batches[0])
        for index, step, lr, _ in train(sae, batches, training):
            weight = sae.l1_coefficient * golden.arrays["trace/sparsity_scale"][index]
            losses = {name: value.item() for name, value in step.losses.items()}
            golden.assert_trace("lr", index, lr)
            golden.assert_trace("loss", index, step.loss.item())
            golden.assert_trace("mse_loss", index, losses["mse"])
            golden.assert_trace("aux_loss", index, losses["gate_mse"])
            golden.assert_trace("l0", index, step.metrics["l0"].item())
            if weight:
                golden.assert_trace("sparsity_loss", index, losses["l1"] / weight)
            assert weight or losses["l1"] == 0
            if index == 0:
                _assert_state(golden, "after_step0", sae)
        _assert_state(golden, "final", sae)
        sae.eval()
        x = golden.tensor("x_eval")
        golden.assert_close("eval/encode", sae.encode(x).to_dense())
        golden.assert_close("eval/encode", sae.step(x).latents.to_dense())
        golden.assert_close("eval/decode", sae.reconstruct(x))


def test_lightning_training_ends_with_the_reference_weights(golden_dir, tmp_path):
    for golden in golden_files(golden_dir, "dictionary_learning/gated*.npz"):
        sae, training = _start(golden)
        train_with_lightning(sae, golden.tensor("x_train"), training, tmp_path)
        _assert_state(golden, "final", sae)
