import json
import math

import pytest
import torch
from safetensors.torch import load_file

from src.models.saes import penalized
from src.models.saes.gated import Gated
from src.models.saes.step import TrainingProgress
from src.ops.sparse_latents import SparseLatents
from src.stores.sae import save_sae

D_IN, N_LATENTS, N_ROWS = 6, 24, 50
CASES = [{}, {"apply_b_dec_to_input": False, "error_scale": "sum"}, {"use_b_enc": False}]


def _sae(dtype=torch.float32, **options):
    torch.manual_seed(0)
    sae = Gated(D_IN, N_LATENTS, **{"l1_coefficient": 0.05, **options}).to(dtype)
    with torch.no_grad():
        for bias in (sae.b_dec, sae.b_mag, sae.r_mag, *([sae.b_enc] if sae.use_b_enc else [])):
            bias.normal_(0, 0.3)
    return sae


def _activations(dtype=torch.float32):
    activations = torch.randn(N_ROWS, D_IN, generator=torch.Generator().manual_seed(1)).to(dtype)
    activations[3] = 0.0
    return activations


def _gradients(sae, activations):
    step = sae.step(activations, TrainingProgress(3))
    step.loss.backward()
    return step, {name: p.grad for name, p in sae.named_parameters() if p.grad is not None}


def _by_formulas(sae, x):
    parameters = {n: p.detach().requires_grad_(p.requires_grad) for n, p in sae.named_parameters()}
    W_enc, b_enc, W_dec, b_dec, r_mag, b_mag = (
        parameters[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec", "r_mag", "b_mag")
    )
    products = (x - b_dec if sae.apply_b_dec_to_input else x) @ W_enc.T
    gates = products + b_enc
    latents = (gates > 0) * torch.relu(r_mag.exp() * products + b_mag)
    errors = (latents @ W_dec + b_dec - x).square(), (gates.relu() @ W_dec.detach() + b_dec.detach() - x).square()
    mse, gate_mse = (error.mean() if sae.error_scale == "mean" else error.sum(1).mean() for error in errors)
    loss = mse + gate_mse + sae.l1_coefficient * gates.relu().sum(1).mean()
    loss.backward()
    return loss, latents, {name: p.grad for name, p in parameters.items() if p.grad is not None}


@pytest.mark.parametrize("is_sparse", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_steps_follow_the_formulas(case, is_sparse, monkeypatch):
    monkeypatch.setattr(penalized, "SPARSE_BELOW", math.inf if is_sparse else 0.0)
    sae, activations = _sae(torch.float64, **case), _activations(torch.float64)
    loss, latents, expected = _by_formulas(sae, activations)
    step, gradients = _gradients(sae, activations)
    assert isinstance(step.latents, SparseLatents) == is_sparse
    torch.testing.assert_close(step.loss, loss, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(step.latents.to_dense(), latents, rtol=1e-10, atol=1e-12)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("case", CASES)
def test_sparse_and_dense_products_agree(case, monkeypatch):
    results = []
    for sparse_below in (0.0, math.inf):
        monkeypatch.setattr(penalized, "SPARSE_BELOW", sparse_below)
        results.append(_gradients(_sae(**case), _activations()))
    (dense, dense_gradients), (sparse, sparse_gradients) = results
    torch.testing.assert_close(dense.loss, sparse.loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(dense.latents.to_dense(), sparse.latents.to_dense(), rtol=1e-5, atol=1e-5)
    for name, gradient in dense_gradients.items():
        torch.testing.assert_close(gradient, sparse_gradients[name], rtol=1e-5, atol=1e-5, msg=name)


def test_inference_codes_as_training_and_lists_no_zeros():
    sae, activations = _sae(), _activations()
    latents = sae.encode(activations)
    assert (latents.values > 0).all()
    torch.testing.assert_close(latents.to_dense(), sae.step(activations).latents.to_dense(), rtol=1e-5, atol=1e-6)
    fires = latents.to_dense() > 0
    assert (sae.pre_latents(activations)[fires] > 0).all()


def test_auxk_learns_from_the_gates_of_dead_neurons(monkeypatch):
    for sparse_below in (0.0, math.inf):
        monkeypatch.setattr(penalized, "SPARSE_BELOW", sparse_below)
        sae, activations = _sae(aux_coefficient=1.0, dead_after=1, k_aux=N_LATENTS), _activations()
        dead = torch.tensor([2, 7])
        with torch.no_grad():
            sae.b_mag[dead] = -100.0
        step = sae.step(activations)
        residual = (activations - step.reconstruction).detach()
        rebuilt = sae.pre_latents(activations)[:, dead].relu() @ sae.W_dec[dead]
        torch.testing.assert_close(step.losses["aux"], (rebuilt - residual).square().mean(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("apply_b_dec_to_input", [True, False])
def test_exported_weights_infer_the_same(apply_b_dec_to_input, tmp_path):
    sae = _sae(apply_b_dec_to_input=apply_b_dec_to_input).eval()
    sae.set_input_statistics(torch.linspace(-3, 3, D_IN), torch.linspace(0.3, 2.2, D_IN))
    save_sae(sae, tmp_path)
    weights, config = load_file(tmp_path / "sae_weights.safetensors"), json.loads((tmp_path / "cfg.json").read_text())
    assert config["architecture"] == "gated"
    assert set(weights) == {"W_enc", "W_dec", "b_dec", "b_gate", "b_mag", "r_mag"}
    x = _activations() * 2 + 1
    inputs = x - weights["b_dec"] if apply_b_dec_to_input else x
    gates = inputs @ weights["W_enc"] + weights["b_gate"] > 0
    latents = gates * torch.relu(inputs @ (weights["W_enc"] * weights["r_mag"].exp()) + weights["b_mag"])
    torch.testing.assert_close(sae.encode(x).to_dense(), latents, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sae(x), latents @ weights["W_dec"] + weights["b_dec"], rtol=1e-5, atol=1e-5)


def test_a_negative_coefficient_is_refused():
    with pytest.raises(ValueError, match=r"Expected sae.l1_coefficient of at least 0, got -1"):
        Gated(4, 8, l1_coefficient=-1)
