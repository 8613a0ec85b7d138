"""The presets named after sae-1n follow its own numbers: BatchTopK, TopK and the ReLU SAE."""

import lightning
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from src.modules.sae import SAEModule
from tests.models.saes.golden import TRACE, Training, compose_sae, golden_files, train

pytestmark = [
    pytest.mark.golden,
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),
]

PRESETS = {"BatchTopKSAE": "batch_topk_sae1n", "TopKSAE": "topk_sae1n", "VanillaSAE": "vanilla_sae1n"}
NAMES = ("loss", "l2_loss", "l1_loss", "aux_loss", "l0_norm", "num_dead_features")
STATE = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")


def _files(golden_dir):
    return [golden for golden in golden_files(golden_dir, "sae1n/*.npz") if golden.settings["model"] in PRESETS]


def _sae(golden):
    settings = golden.settings
    options = {
        "n_latents": settings["dict_size"],
        "l1_coefficient": settings["l1_coeff"],
        "dead_after": settings["n_batches_to_dead"],
        "input_norm": "z_score" if settings["input_unit_norm"] else "none",
    }
    if settings["model"] != "VanillaSAE":
        names = {"k": "top_k", "k_aux": "top_k_aux", "aux_coefficient": "aux_penalty"}
        options |= {ours: settings[theirs] for ours, theirs in names.items()}
    sae = compose_sae(PRESETS[settings["model"]], settings["act_size"], **options)
    with torch.no_grad():
        for name in STATE:
            if f"init/{name}" in golden.arrays:
                value = golden.tensor(f"init/{name}")
                getattr(sae, name).copy_(value.T if name == "W_enc" else value)
    return sae


def _training(golden):
    settings = golden.settings
    return Training(settings["lr"], (settings["beta1"], settings["beta2"]), settings["max_grad_norm"])


def _numbers(sae, step):
    """One step in the reference's names; its reported dead count says '>' where its loss says '>='."""
    zero = torch.zeros(())
    n_dead = (sae.silent_for > sae.dead_after).sum()
    losses = [step.loss, step.losses["mse"], step.losses.get("l1", zero), step.losses.get("aux", zero)]
    values = [*(loss.item() for loss in losses), step.metrics["l0"].item(), n_dead.item()]
    return dict(zip(NAMES, values, strict=True))


def _assert_state(golden, prefix, sae):
    for name in STATE:
        if f"{prefix}/{name}" in golden.arrays:
            value = getattr(sae, name).detach()
            golden.assert_close(f"{prefix}/{name}", value.T if name == "W_enc" else value)


def _validate(sae, batches):
    sae.eval()
    with torch.no_grad():
        rows = [_numbers(sae, sae.step(batch)) for batch in batches]
    sae.train()
    return {name: np.mean([row[name] for row in rows]) for name in NAMES}


@pytest.mark.slow
def test_traces_validation_and_evaluation(golden_dir):
    files = _files(golden_dir)
    assert {golden.settings["model"] for golden in files} == set(PRESETS)
    for golden in files:
        arrays, sae = golden.arrays, _sae(golden)
        validated_after = arrays["val/step"].tolist() if "val/step" in arrays else []
        best = np.inf
        for index, step, _, norm in train(sae, golden.tensor("x_train"), _training(golden)):
            for name, value in _numbers(sae, step).items():
                if f"trace/{name}" in arrays:
                    golden.assert_trace(name, index, value)
            if "trace/threshold" in arrays:
                golden.assert_trace("threshold", index, float(sae.threshold))
            golden.assert_trace("grad_norm_pre_clip", index, norm)
            silent = sae.silent_for.numpy()
            np.testing.assert_array_equal(silent, arrays["trace/num_batches_not_active"][index], err_msg=golden.name)
            assert (silent >= sae.dead_after).sum() == arrays["trace/n_dead_ge"][index]
            assert (step.latents.to_dense().clamp_min(0).amax(0) == 0).sum() == arrays["trace/n_dead_in_batch"][index]
            if index in validated_after:
                row = validated_after.index(index)
                means = _validate(sae, golden.tensor("x_val"))
                for name, value in means.items():
                    np.testing.assert_allclose(value, arrays[f"val/{name}"][row], **TRACE, err_msg=name)
                if means["loss"] < best:
                    best, best_state = means["loss"], {name: value.clone() for name, value in sae.state_dict().items()}
        _assert_state(golden, "final", sae)
        np.testing.assert_array_equal(sae.silent_for, arrays["final_num_batches_not_active"])
        _assert_evaluation(golden, sae.eval())
        if validated_after:
            sae.load_state_dict(best_state)
            _assert_state(golden, "best", sae)


@torch.no_grad()
def _assert_evaluation(golden, sae):
    x, arrays = golden.tensor("x_eval"), golden.arrays
    statistics = sae.normalize(x)[1]
    if "eval/encode" in arrays:
        latents = sae.encode(x)
        golden.assert_close("eval/encode", latents.to_dense())
        golden.assert_close("eval/decode", sae.decode(latents, statistics))
    if "eval/threshold_before_forward" in arrays:
        golden.assert_close("eval/threshold_before_forward", float(sae.threshold), **TRACE)
    step = sae.step(x)
    for name, value in _numbers(sae, step).items():
        if f"eval/forward_{name}" in arrays:
            golden.assert_close(f"eval/forward_{name}", value, **TRACE)
    golden.assert_close("eval/forward_feature_acts", step.latents.to_dense())
    golden.assert_close("eval/forward_sae_out", sae.decode(step.latents, statistics))
    if "eval/threshold_after_forward" in arrays:
        golden.assert_close("eval/threshold_after_forward", float(sae.threshold), **TRACE)
    if "trainmode/encode" in arrays:
        golden.assert_close("trainmode/encode", sae.train().step(x).latents.to_dense())


@pytest.mark.slow
def test_lightning_training_ends_with_the_reference_weights(golden_dir, tmp_path):
    for golden in _files(golden_dir):
        if "x_val" in golden.arrays:
            continue  # its validation rhythm is not Lightning's; the trace above follows it
        training = _training(golden)
        module = SAEModule(_sae(golden), lr=training.lr, betas=training.betas, max_grad_norm=training.max_grad_norm)
        trainer = lightning.Trainer(
            accelerator="cpu",
            max_epochs=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_val_batches=0,
            default_root_dir=tmp_path,
        )
        batches = list(golden.tensor("x_train"))
        blocks = [batches[start : start + 7] for start in range(0, len(batches), 7)]
        trainer.fit(module, DataLoader(blocks, batch_size=None), DataLoader(batches[:1], batch_size=None))
        _assert_state(golden, "final", module.sae)
