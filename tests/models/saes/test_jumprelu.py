import math

import pytest
import torch
from safetensors.torch import load_file

from src.models.saes import penalized
from src.models.saes.jumprelu import JumpReLU
from src.models.saes.step import TrainingProgress
from src.ops.sparse_latents import SparseLatents
from src.stores.sae import save_sae

D_IN, N_LATENTS, N_ROWS = 6, 24, 50
SAE1N = {
    "penalty": "l0",
    "l0_coefficient": 0.01,
    "relu_before_threshold": True,
    "step_on_gated": True,
    "threshold_form": "log_unit_gradient",
    "threshold_init": 1.0,
    "apply_b_dec_to_input": False,
}
CASES = [
    {},
    {"relu_before_threshold": True},
    {"step_on_gated": True, "allow_negative_threshold": True, "error_scale": "sum"},
    SAE1N,
    SAE1N | {"threshold_form": "log"},
]


def _sae(dtype=torch.float32, **options):
    """An SAE with thresholds above, below and far below half of its bandwidth, negative ones where they may be."""
    torch.manual_seed(0)
    sae = JumpReLU(D_IN, N_LATENTS, **{"bandwidth": 0.4, "target_l0": 5, **options}).to(dtype)
    with torch.no_grad():
        sae.b_enc.normal_(0, 0.3)
        sae.b_dec.normal_(0, 0.3)
        lowest = -0.5 if sae.allow_negative_threshold else 0.01
        thresholds = torch.linspace(lowest, 0.8, N_LATENTS)
        if sae.threshold_form == "raw":
            sae.threshold.copy_(thresholds)
        else:
            sae.log_threshold.copy_(thresholds.log())
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
    """Loss and gradients in dense algebra, from the papers' and references' formulas."""
    theta = (sae.threshold if sae.threshold_form == "raw" else sae.log_threshold.exp()).detach().requires_grad_()
    half = sae.bandwidth / 2
    b_dec = sae.b_dec.detach().requires_grad_()
    W_enc, b_enc, W_dec = (p.detach().requires_grad_() for p in (sae.W_enc, sae.b_enc, sae.W_dec))
    pre = (x - b_dec if sae.apply_b_dec_to_input else x) @ W_enc.T + b_enc
    z = pre.relu() if sae.relu_before_threshold else pre
    kept = (z > theta).detach()
    window = ((z - theta).abs() < half).detach()
    # Terms of value 0 whose derivative is the straight-through one.
    f = z * kept - (theta - theta.detach()) * theta.detach() / sae.bandwidth * window
    seen = (z * kept if sae.step_on_gated else z).detach()
    seen_window = (seen - theta.detach()).abs() < half
    steps = (seen > theta).to(x.dtype) - (theta - theta.detach()) / sae.bandwidth * seen_window
    l0 = steps.sum(1).mean()
    error = (f @ W_dec + b_dec - x).square()
    error = error.mean() if sae.error_scale == "mean" else error.sum(1).mean()
    loss = error + sae.l0_coefficient * (l0 if sae.penalty == "l0" else (l0 / sae.target_l0 - 1).square())
    loss.backward()
    gradients = {"W_enc": W_enc.grad, "b_enc": b_enc.grad, "W_dec": W_dec.grad, "b_dec": b_dec.grad}
    if sae.threshold_form == "raw":
        return loss, gradients | {"threshold": theta.grad}
    factor = theta.detach() if sae.threshold_form == "log" else 1.0
    return loss, gradients | {"log_threshold": theta.grad * factor}


@pytest.mark.parametrize("is_sparse", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_steps_follow_the_formulas(case, is_sparse, monkeypatch):
    monkeypatch.setattr(penalized, "SPARSE_BELOW", math.inf if is_sparse else 0.0)
    sae, activations = _sae(torch.float64, **case), _activations(torch.float64)
    loss, expected = _by_formulas(sae, activations)
    step, gradients = _gradients(sae, activations)
    assert isinstance(step.latents, SparseLatents) == is_sparse
    torch.testing.assert_close(step.loss, loss, rtol=1e-10, atol=1e-12)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-12, msg=name)
    trained = expected["threshold" if sae.threshold_form == "raw" else "log_threshold"]
    assert trained.count_nonzero() > N_LATENTS // 2


@pytest.mark.parametrize("case", CASES)
def test_sparse_and_dense_products_agree(case, monkeypatch):
    steps, gradients = [], []
    for sparse_below in (0.0, math.inf):
        monkeypatch.setattr(penalized, "SPARSE_BELOW", sparse_below)
        step, gradient = _gradients(_sae(**case), _activations())
        steps.append(step)
        gradients.append(gradient)
    torch.testing.assert_close(steps[0].loss, steps[1].loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(steps[0].latents.to_dense(), steps[1].latents.to_dense(), rtol=1e-5, atol=1e-5)
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("form", ["raw", "log"])
def test_inference_keeps_what_exceeds_the_trained_threshold(form):
    sae = _sae(threshold_form=form, threshold_init=0.5).eval()
    x = _activations()
    pre_latents, threshold = sae.pre_latents(x), sae.inference_threshold
    torch.testing.assert_close(threshold, torch.linspace(0.01, 0.8, N_LATENTS))
    expected = pre_latents * (pre_latents > threshold)
    torch.testing.assert_close(sae.encode(x).to_dense(), expected.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(sae.step(x).latents.to_dense(), expected, rtol=1e-5, atol=1e-6)


def test_inference_drops_negative_latents_that_training_keeps():
    sae, x = _sae(allow_negative_threshold=True), _activations()
    assert (sae.step(x).latents.to_dense() < 0).any()
    assert (sae.eval().step(x).latents.to_dense() >= 0).all()
    assert (sae.encode(x).values > 0).all()
    assert sae.inference_threshold.min() == 0


def test_thresholds_stay_positive_unless_they_may_be_negative():
    for may in (False, True):
        sae = _sae(allow_negative_threshold=may)
        with torch.no_grad():
            sae.threshold.fill_(-0.1)
        sae.constrain_after_step_()
        assert bool((sae.threshold < 0).any()) == may


def test_export_holds_the_thresholds(tmp_path):
    sae = _sae(**SAE1N)
    save_sae(sae, tmp_path)
    weights = load_file(tmp_path / "sae_weights.safetensors")
    torch.testing.assert_close(weights["threshold"], sae.log_threshold.exp().detach())
    assert set(weights) == {"W_enc", "b_enc", "W_dec", "b_dec", "threshold"}


def test_silent_neurons_are_counted_unless_asked_not_to():
    for counts in (True, False):
        sae = _sae(count_silent=counts)
        with torch.no_grad():
            sae.threshold.fill_(100.0)
        sae.step(_activations())
        assert (sae.silent_for == int(counts)).all()


def test_the_first_batch_sets_the_thresholds():
    sae = JumpReLU(D_IN, N_LATENTS, target_l0=2)
    activations = _activations()
    sae.initialize_from_(activations)
    assert sae.step(activations).metrics["l0"] == 8  # four times the target
    assert JumpReLU(D_IN, N_LATENTS, threshold_init=0.3).threshold.unique().tolist() == [pytest.approx(0.3)]


def _sums_of_directions(n_rows, n_directions, n_per_row, generator):
    directions = torch.nn.functional.normalize(torch.randn(n_directions, 16, generator=generator), dim=1)
    amounts = torch.zeros(n_rows, n_directions)
    chosen = torch.rand(n_rows, n_directions, generator=generator).topk(n_per_row).indices
    amounts.scatter_(1, chosen, 0.5 + torch.rand(n_rows, n_per_row, generator=generator))
    return amounts @ directions


@pytest.mark.parametrize("target_l0", [2, 4, 8])
@pytest.mark.slow
def test_the_target_l0_is_reached_in_300_steps(target_l0):
    torch.manual_seed(0)
    activations = _sums_of_directions(5120, 64, 4, torch.Generator().manual_seed(0))
    sae = JumpReLU(16, 64, target_l0=target_l0)
    optimizer = torch.optim.Adam(sae.parameters(), lr=1e-3, betas=(0.9, 0.99))
    batches = activations.split(256)
    sae.initialize_from_(batches[0])
    for index in range(300):
        sae.step(batches[index % len(batches)]).loss.backward()
        sae.constrain_gradient_()
        optimizer.step()
        optimizer.zero_grad()
        sae.constrain_after_step_()
    latents = sae.eval().encode(activations)
    assert latents.n_entries / latents.n_rows == pytest.approx(target_l0, rel=0.25)
    assert (latents.to_dense().clamp_min(0).amax(0) > 0).all()


def test_options_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"Expected a positive sae.bandwidth, got 0"):
        JumpReLU(4, 8, bandwidth=0)
    with pytest.raises(ValueError, match=r"Expected a positive sae.target_l0, got -1"):
        JumpReLU(4, 8, target_l0=-1)
    with pytest.raises(ValueError, match=r"Expected a positive sae.threshold_init with threshold_form=log, got None"):
        JumpReLU(4, 8, threshold_form="log")
    with pytest.raises(ValueError, match=r"Expected sae.penalty to be one of"):
        JumpReLU(4, 8, penalty="l1")
