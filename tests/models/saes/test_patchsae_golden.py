"""PatchSAE's and CytoSAE's presets follow their own numbers with their SAE and training, on rows and image blocks."""

import numpy as np
import pytest
import torch

from src import config
from tests.models.saes.golden import Training, golden_files, train

pytestmark = pytest.mark.golden

# Image blocks accumulate more rounding (the golden set's README).
BLOCKS = {"rtol": 1e-4, "atol": 1e-4}
ROWS = {"rtol": 1e-4, "atol": 2e-5}
PRESETS = ("imagenet_clip_vitb16", "mll23_dinobloom", "hehr_dinobloom")


def _groups(exp):
    """Returns the SAE and the training of a preset, as plain values."""
    config.register_resolvers()
    cfg = config.to_container(config.compose([f"exp={exp}", "dataset.dir=x"]))
    return cfg["sae"], cfg["train"]


def _sae(golden, node):
    settings = golden.settings
    # What the golden set varies.
    varied = {
        "n_latents": settings["d_sae"],
        "l1_coefficient": settings["l1_coefficient"],
        "ghost_gradients": settings["use_ghost_grads"],
        "class_token_weight": settings["mse_cls_coefficient"],
        "b_dec_init": settings["b_dec_init_method"],
        "dead_after": settings["dead_feature_window"] + 1,
    }
    sae = config.instantiate({**node, **varied}, d_in=settings["d_in"])
    with torch.no_grad():
        for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
            value = golden.tensor(f"init/{name}")
            getattr(sae, name).copy_(value.T if name == "W_enc" else value)
    return sae


def _training(settings, node):
    assert node["lr"] == settings["lr"]
    options = settings["scheduler_kwargs"] or {"warm_up_steps": node["warmup_steps"]}
    schedule = {"warmup_steps": options["warm_up_steps"]}
    if settings["lr_scheduler_name"] == "linearwarmupdecay":
        steps = options["training_steps"]
        schedule |= {"total_steps": steps, "decay_fraction": 1 - options["warm_up_steps"] / steps}
    return Training(node["lr"], tuple(node["betas"]), node["max_grad_norm"], schedule)


def test_the_presets_differ_in_nothing_but_their_length():
    of_length = {"batch_size", "total_rows"}
    saes, trainings = zip(*map(_groups, PRESETS), strict=True)
    assert all(sae == saes[0] for sae in saes)
    plain = [{key: value for key, value in training.items() if key not in of_length} for training in trainings]
    assert all(training == plain[0] for training in plain)
    assert (saes[0]["l1_coefficient"], saes[0]["expansion"], plain[0]["batch_unit"]) == (8e-5, 64, "images")


@pytest.mark.slow
def test_traces_and_weights(golden_dir):
    sae_node, train_node = _groups(PRESETS[0])
    for golden in golden_files(golden_dir, "patchsae/*.npz"):
        settings, arrays = golden.settings, golden.arrays
        sae = _sae(golden, sae_node)
        tolerance = BLOCKS if arrays["x_train"].ndim == 4 else ROWS
        sae.initialize_from_(golden.tensor("x_bdec_init"))
        golden.assert_close("b_dec_after_init", sae.b_dec, rtol=0, atol=5e-5)
        with torch.no_grad():
            sae.b_dec.copy_(golden.tensor("b_dec_after_init"))
        counts, n_samples, window = torch.zeros(sae.n_latents), 0, settings["feature_sampling_window"]
        silent = sae.silent_for.clone()
        batches = golden.tensor("x_train")
        training = _training(settings, train_node)
        for index, step, lr, _ in train(sae, batches, training):
            golden.assert_trace("mse_loss", index, step.losses["mse"].item())
            golden.assert_trace("l1_loss", index, step.losses["l1"].item())
            ghost = step.losses.get("ghost", torch.zeros(())).item()
            golden.assert_trace("mse_loss_ghost_resid", index, ghost)
            golden.assert_trace("loss", index, step.loss.item())
            golden.assert_trace("lr", index, lr, rtol=1e-6)
            assert int((silent >= sae.dead_after).sum()) == arrays["trace/n_ghost_mask"][index]
            silent = sae.silent_for.clone()
            np.testing.assert_array_equal(silent, arrays["trace/n_forward_passes_since_fired"][index])
            if (index + 1) % window == 0:
                counts, n_samples = torch.zeros(sae.n_latents), 0
            counts += (step.latents.to_dense() > 0).sum(0)
            n_samples += len(batches[index])
            np.testing.assert_array_equal(counts, arrays["trace/act_freq_scores"][index])
            assert n_samples == arrays["trace/n_frac_active_tokens"][index]
        for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
            value = getattr(sae, name)
            golden.assert_close(f"final/{name}", value.T if name == "W_enc" else value, **tolerance)
        _assert_evaluation(golden, sae.eval(), tolerance)


@torch.no_grad()
def _assert_evaluation(golden, sae, tolerance):
    x = golden.tensor("x_eval")
    rows = x.reshape(-1, sae.d_in)
    golden.assert_close("eval/feature_acts", sae.encode(rows).to_dense().view(*x.shape[:-1], -1), **tolerance)
    golden.assert_close("eval/sae_out", sae.reconstruct(rows).view(x.shape), **tolerance)
    step = sae.step(x)
    for name, loss in (("l1_loss", "l1"), ("mse_loss", "mse")):
        golden.assert_close(f"eval/{name}", step.losses[loss].item(), **tolerance)
    assert step.losses.get("ghost", 0) == 0
    golden.assert_close("eval/loss", step.loss.item(), **tolerance)
