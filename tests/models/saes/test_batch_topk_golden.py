"""The preset batch_topk_sae1n follows sae-1n's own numbers."""

import json

import hydra
import lightning
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from src.config import CONF_DIR, instantiate
from src.modules.sae import SAEModule

pytestmark = [
    pytest.mark.golden,
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),
]

# Of the golden set's README: what the reference's own float64 run and an independent one agree to, with room.
TRACE = {"rtol": 1e-5, "atol": 1e-6}
PARAMETERS = {"rtol": 1e-4, "atol": 2e-5}
NAMES = ("loss", "l2_loss", "l1_loss", "aux_loss", "l0_norm", "num_dead_features")


def _files(golden_dir):
    paths = sorted((golden_dir / "sae1n").glob("batchtopk*.npz"))
    assert paths, f"no sae1n/batchtopk*.npz in {golden_dir}"
    return [(path.name, dict(np.load(path))) for path in paths]


def _sae(golden, settings):
    with hydra.initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        node = hydra.compose("sae/batch_topk_sae1n").sae
    node.k, node.k_aux, node.n_latents = settings["top_k"], settings["top_k_aux"], settings["dict_size"]
    node.aux_coefficient, node.l1_coefficient = settings["aux_penalty"], settings["l1_coeff"]
    node.dead_after = settings["n_batches_to_dead"]
    node.input_norm = "z_score" if settings["input_unit_norm"] else "none"
    sae = instantiate(node, d_in=settings["act_size"])
    with torch.no_grad():
        sae.W_enc.copy_(torch.from_numpy(golden["init/W_enc"]).T)
        for name in ("W_dec", "b_enc", "b_dec", "threshold"):
            getattr(sae, name).copy_(torch.from_numpy(golden[f"init/{name}"]))
    return sae


def _numbers(sae, step):
    """One step in the reference's names; its reported dead count says '>' where its loss says '>='."""
    zero = torch.zeros(())
    n_dead = (sae.silent_for > sae.dead_after).sum()
    losses = [step.loss, step.losses["mse"], step.losses.get("l1", zero), step.losses.get("aux", zero)]
    values = [*(loss.item() for loss in losses), step.metrics["l0"].item(), n_dead.item()]
    return dict(zip(NAMES, values, strict=True))


def _assert_parameters(sae, golden, prefix):
    np.testing.assert_allclose(sae.W_enc.detach().T, golden[f"{prefix}/W_enc"], **PARAMETERS)
    for name in ("W_dec", "b_enc", "b_dec", "threshold"):
        np.testing.assert_allclose(getattr(sae, name).detach(), golden[f"{prefix}/{name}"], **PARAMETERS, err_msg=name)


def _validate(sae, batches):
    sae.eval()
    with torch.no_grad():
        rows = [_numbers(sae, sae.step(batch)) for batch in batches]
    sae.train()
    return {name: np.mean([row[name] for row in rows]) for name in NAMES}


def test_traces_validation_and_evaluation(golden_dir):
    for file, golden in _files(golden_dir):
        settings = json.loads(str(golden["config_json"]))
        sae = _sae(golden, settings)
        parameters = [parameter for parameter in sae.parameters() if parameter.requires_grad]
        betas = (settings["beta1"], settings["beta2"])
        optimizer = torch.optim.Adam(parameters, lr=settings["lr"], betas=betas, fused=True)
        validated_after = golden["val/step"].tolist() if "val/step" in golden else []
        best = np.inf
        for index, batch in enumerate(torch.from_numpy(golden["x_train"])):
            step = sae.step(batch)
            for name, value in _numbers(sae, step).items():
                np.testing.assert_allclose(value, golden[f"trace/{name}"][index], **TRACE, err_msg=f"{file} {name}")
            np.testing.assert_allclose(float(sae.threshold), golden["trace/threshold"][index], **TRACE)
            silent = sae.silent_for.numpy()
            np.testing.assert_array_equal(silent, golden["trace/num_batches_not_active"][index], err_msg=file)
            assert (silent >= settings["n_batches_to_dead"]).sum() == golden["trace/n_dead_ge"][index]
            assert (step.latents.max_over_rows() == 0).sum() == golden["trace/n_dead_in_batch"][index]
            step.loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(parameters, settings["max_grad_norm"])
            np.testing.assert_allclose(float(norm), golden["trace/grad_norm_pre_clip"][index], **TRACE)
            sae.constrain_gradient_()
            sae.constrain_before_step_()
            optimizer.step()
            optimizer.zero_grad()
            sae.constrain_after_step_()
            if index in validated_after:
                row = validated_after.index(index)
                means = _validate(sae, torch.from_numpy(golden["x_val"]))
                for name, value in means.items():
                    np.testing.assert_allclose(value, golden[f"val/{name}"][row], **TRACE, err_msg=f"{file} {name}")
                if means["loss"] < best:
                    best, best_state = means["loss"], {name: value.clone() for name, value in sae.state_dict().items()}
        _assert_parameters(sae, golden, "final")
        np.testing.assert_array_equal(sae.silent_for, golden["final_num_batches_not_active"])
        _assert_evaluation(sae, golden)
        if validated_after:
            sae.load_state_dict(best_state)
            _assert_parameters(sae, golden, "best")


def _assert_evaluation(sae, golden):
    x_eval = torch.from_numpy(golden["x_eval"])
    sae.eval()
    latents = sae.encode(x_eval)
    np.testing.assert_allclose(latents.to_dense(), golden["eval/encode"], **PARAMETERS)
    with torch.no_grad():
        np.testing.assert_allclose(sae.decode(latents, sae.normalize(x_eval)[1]), golden["eval/decode"], **PARAMETERS)
        np.testing.assert_allclose(float(sae.threshold), golden["eval/threshold_before_forward"], **TRACE)
        step = sae.step(x_eval)
        np.testing.assert_allclose(float(sae.threshold), golden["eval/threshold_after_forward"], **TRACE)
        for name, value in _numbers(sae, step).items():
            np.testing.assert_allclose(value, golden[f"eval/forward_{name}"], **TRACE, err_msg=name)
        np.testing.assert_allclose(step.latents.to_dense(), golden["eval/forward_feature_acts"], **PARAMETERS)
        np.testing.assert_allclose(
            sae.decode(step.latents, sae.normalize(x_eval)[1]), golden["eval/forward_sae_out"], **PARAMETERS
        )
        sae.train()
        np.testing.assert_allclose(sae.step(x_eval).latents.to_dense(), golden["trainmode/encode"], **PARAMETERS)


def test_lightning_training_ends_with_the_reference_weights(golden_dir, tmp_path):
    for _, golden in _files(golden_dir):
        if "x_val" in golden:
            continue  # its validation rhythm is not Lightning's; the trace above follows it
        settings = json.loads(str(golden["config_json"]))
        betas = (settings["beta1"], settings["beta2"])
        module = SAEModule(
            _sae(golden, settings), lr=settings["lr"], betas=betas, max_grad_norm=settings["max_grad_norm"]
        )
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
        batches = list(torch.from_numpy(golden["x_train"]))
        blocks = [batches[start : start + 7] for start in range(0, len(batches), 7)]
        trainer.fit(module, DataLoader(blocks, batch_size=None), DataLoader(batches[:1], batch_size=None))
        _assert_parameters(module.sae, golden, "final")
