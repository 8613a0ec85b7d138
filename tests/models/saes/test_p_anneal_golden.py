"""The preset p_anneal_dictlearn follows dictionary_learning's own numbers."""

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

STATE = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "decoder.weight": "W_dec", "bias": "b_dec"}


def _ours(sae, name):
    value = getattr(sae, STATE[name])
    return value.T if name == "decoder.weight" else value


def _assert_state(golden, prefix, sae):
    for name in STATE:
        golden.assert_close(f"{prefix}/{name}", _ours(sae, name))


def _start(golden):
    settings = golden.settings
    passed = settings["_class_defaults"] | settings["_constructor_args"]
    updates = passed["n_sparsity_updates"]
    sae = compose_sae(
        "p_anneal_dictlearn",
        settings["activation_dim"],
        n_latents=settings["dict_size"],
        l1_coefficient=passed["initial_sparsity_penalty"],
        sparsity_warmup_steps=settings["sparsity_warmup_steps"],
        sparsity_function=settings["sparsity_function"],
        p_start=settings["p_start"],
        p_end=settings["p_end"],
        n_updates=None if updates == "continuous" else updates,
        anneal_start=passed["anneal_start"],
        anneal_end=passed["anneal_end"],
        queue_length=settings["sparsity_queue_length"],
    )
    schedule = {"warmup_steps": settings["warmup_steps"], "warmup_from_zero": True}
    if settings["decay_start"] is not None:
        steps = settings["steps"]
        schedule |= {"decay_fraction": 1 - settings["decay_start"] / steps, "total_steps": steps}
    with torch.no_grad():
        for name in STATE:
            _ours(sae, name).copy_(golden.tensor(f"init/{name}"))
    return sae, Training(settings["lr"], (0.9, 0.999), None, schedule)


def _assert_step(golden, index, sae, step):
    arrays = golden.arrays
    golden.assert_trace("loss", index, step.loss.item())
    golden.assert_trace("l0", index, step.metrics["l0"].item())
    lp = step.losses["lp"].item()
    golden.assert_trace("scaled_lp_loss", index, lp)
    # The state traced is that after the step, the penalty's that before it.
    before = (
        arrays["trace/sparsity_coeff"][index - 1]
        if index
        else golden.settings["_constructor_args"].get(
            "initial_sparsity_penalty", golden.settings["_class_defaults"]["initial_sparsity_penalty"]
        )
    )
    weight = before * arrays["trace/sparsity_scale"][index]
    if weight:
        golden.assert_trace("lp_loss", index, lp / weight)
    golden.assert_trace("p", index, float(sae.p))
    golden.assert_trace("sparsity_coeff", index, float(sae.coefficient))
    since = index - (len(arrays["trace/p"]) - len(arrays["trace/next_p"]))
    if since < 0:
        assert sae.next_p == -1  # none yet
    else:
        np.testing.assert_allclose(float(sae.next_p), arrays["trace/next_p"][since], **TRACE)


@pytest.mark.parametrize("is_sparse", [False, True])
def test_traces_and_weights(golden_dir, is_sparse, monkeypatch):
    monkeypatch.setattr(penalized, "SPARSE_BELOW", math.inf if is_sparse else 0.0)
    for golden in golden_files(golden_dir, "dictionary_learning/p_anneal*.npz"):
        sae, training = _start(golden)
        batches = golden.tensor("x_train")
        sae.initialize_from_(batches[0])
        for index, step, lr, _ in train(sae, batches, training):
            golden.assert_trace("lr", index, lr)
            _assert_step(golden, index, sae, step)
            if index == 0:
                _assert_state(golden, "after_step0", sae)
        _assert_state(golden, "final", sae)
        sae.eval()
        x = golden.tensor("x_eval")
        golden.assert_close("eval/encode", sae.encode(x).to_dense())
        golden.assert_close("eval/decode", sae.reconstruct(x))


def test_lightning_training_ends_with_the_reference_weights(golden_dir, tmp_path):
    for golden in golden_files(golden_dir, "dictionary_learning/p_anneal*.npz"):
        sae, training = _start(golden)
        train_with_lightning(sae, golden.tensor("x_train"), training, tmp_path)
        _assert_state(golden, "final", sae)
        np.testing.assert_allclose(float(sae.coefficient), golden.arrays["trace/sparsity_coeff"][-1], **TRACE)
