import copy
import itertools
import math

import pytest
import torch

from src.models.saes import penalized
from src.models.saes.p_anneal import PAnneal, annealing_steps
from src.models.saes.step import TrainingProgress
from src.ops.sparse_latents import SparseLatents

D_IN, N_LATENTS, N_ROWS, N_STEPS = 6, 24, 50, 20
CASES = [{}, {"sparsity_function": "Lp"}, {"l1_by_atom_norm": True, "decoder_constraint": "none"}]


def _sae(dtype=torch.float32, p=0.6, **options):
    torch.manual_seed(0)
    sae = PAnneal(D_IN, N_LATENTS, **{"l1_coefficient": 0.05, **options})
    if dtype == torch.float64:
        sae.double()  # the state of annealing is always
    with torch.no_grad():
        sae.b_enc.normal_(0, 0.3)
        sae.W_dec.mul_(1.5)
    sae.p.fill_(p)
    return sae


def _activations(dtype=torch.float32, seed=1):
    activations = torch.randn(N_ROWS, D_IN, generator=torch.Generator().manual_seed(seed)).to(dtype)
    activations[3] = 0.0
    return activations


def _gradients(sae, activations):
    step = sae.step(activations, TrainingProgress(3))
    step.loss.backward()
    return step, {name: p.grad for name, p in sae.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("is_sparse", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_steps_follow_the_formula(case, is_sparse, monkeypatch):
    monkeypatch.setattr(penalized, "SPARSE_BELOW", math.inf if is_sparse else 0.0)
    sae, x = _sae(torch.float64, **case), _activations(torch.float64)
    latents = torch.relu(sae.pre_latents(x))
    counted = latents * sae.W_dec.norm(dim=1) if sae.l1_by_atom_norm else latents
    rows = torch.stack([row[row > 0].pow(0.6).sum() for row in counted])
    if sae.sparsity_function == "Lp":
        rows = rows.pow(1 / 0.6)
    loss = (latents @ sae.W_dec + sae.b_dec - x).square().mean() + 0.05 * rows.mean()
    loss.backward()
    expected = {name: p.grad.clone() for name, p in sae.named_parameters()}
    sae.zero_grad()
    step, gradients = _gradients(sae, x)
    assert isinstance(step.latents, SparseLatents) == is_sparse
    torch.testing.assert_close(step.loss, loss, rtol=1e-10, atol=1e-12)
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
    for name, gradient in dense_gradients.items():
        torch.testing.assert_close(gradient, sparse_gradients[name], rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("sparsity_function", ["Lp^p", "Lp"])
def test_rows_without_latents_give_no_gradient(sparsity_function):
    sae = _sae(p=0.3, sparsity_function=sparsity_function)
    with torch.no_grad():
        sae.b_enc.fill_(-100.0)
    step, gradients = _gradients(sae, _activations())
    assert step.losses["lp"] == 0
    assert all(gradient.isfinite().all() for gradient in gradients.values())


def test_silent_latents_count_at_p_zero_only_where_asked():
    for counts in (False, True):
        sae = _sae(p=0.0, count_silent_at_zero=counts)
        step = sae.step(_activations())
        expected = N_LATENTS if counts else step.metrics["l0"].item()
        assert step.losses["lp"].item() == pytest.approx(0.05 * expected)


def _train(sae, optimizer, start, stop, n_steps=N_STEPS):
    seen = []
    for index in range(start, stop):
        progress = TrainingProgress(index, n_steps, n_steps)
        step = sae.step(_activations(seed=index), progress)
        step.loss.backward()
        sae.constrain_gradient_()
        optimizer.step()
        optimizer.zero_grad()
        sae.constrain_after_step_()
        sae.finish_step_(_activations(seed=index), progress, optimizer)
        seen.append((float(sae.p), float(sae.next_p), float(sae.coefficient)))
    return seen


@pytest.mark.parametrize("n_updates", [None, 4])
def test_p_falls_and_the_coefficient_follows(n_updates):
    sae = _sae(p=1.0, n_updates=n_updates)
    seen = _train(sae, torch.optim.Adam(sae.parameters(), lr=1e-2), 0, N_STEPS)
    powers = [p for p, _, _ in seen]
    assert powers[:4] == [1.0] * 4
    assert powers == sorted(powers, reverse=True)
    assert powers[-1] < 0.5
    assert all(before[1] == after[0] for before, after in itertools.pairwise(seen) if after[0] < before[0])
    assert sae.coefficient != pytest.approx(0.05, rel=0.05)


def test_a_change_of_p_keeps_the_weight_of_the_penalty():
    sae = _sae(p=1.0, n_updates=2, anneal_start=0, anneal_end=3, queue_length=2)
    penalties = []
    for index in range(4):
        batch = _activations(seed=index)
        latents = sae.encode(batch).to_dense()
        penalties.append([latents.sum(1).mean(), latents[latents > 0].pow(0.2).sum() / N_ROWS])
        sae.step(batch, TrainingProgress(index))
        sae.finish_step_(batch, TrainingProgress(index), torch.optim.SGD(sae.parameters()))
    before, after = torch.tensor(penalties[2:]).mean(0)
    assert float(sae.coefficient) == pytest.approx(0.05 * float(before / after), rel=1e-5)
    assert float(sae.p) == pytest.approx(0.2)


def test_resumed_training_continues_exactly():
    whole = _sae(p=1.0)
    _train(whole, torch.optim.Adam(whole.parameters(), lr=1e-2), 0, N_STEPS)
    first = _sae(p=1.0)
    optimizer = torch.optim.Adam(first.parameters(), lr=1e-2)
    _train(first, optimizer, 0, 11)
    second = PAnneal(**first.init_arguments())
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    resumed = torch.optim.Adam(second.parameters(), lr=1e-2)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    _train(second, resumed, 11, N_STEPS)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def test_validation_leaves_the_annealing_alone():
    sae = _sae(p=1.0, observe_validation=True)
    _train(sae, torch.optim.Adam(sae.parameters(), lr=1e-2), 0, 8)
    before = sae.queue.clone()
    assert (before != -1).any()
    sae.eval().step(_activations(seed=99))
    assert torch.equal(sae.queue, before)


def test_annealing_steps_are_evenly_spaced():
    steps = annealing_steps(10, 26, 5, 1.0, 0.6)
    assert list(steps) == [10, 14, 18, 22, 26]
    assert steps[14] == pytest.approx((0.9, 0.8))
    assert steps[26] == pytest.approx((0.6, 0.6))
    assert len(annealing_steps(10, 26, None, 1.0, 0.6)) == 16
    assert annealing_steps(30, 26, 5, 1.0, 0.6) == {}


def test_without_a_number_of_steps_there_is_no_annealing():
    sae = _sae(p=1.0)
    sae.finish_step_(_activations(), TrainingProgress(0), torch.optim.SGD(sae.parameters()))
    assert (sae.p, sae.next_p) == (1.0, -1.0)


def test_options_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"above 0 with sparsity_function=Lp, got 1.0 and 0"):
        PAnneal(4, 8, sparsity_function="Lp", p_end=0)
    with pytest.raises(ValueError, match=r"Expected sae.sparsity_function to be one of"):
        PAnneal(4, 8, sparsity_function="L1")
    with pytest.raises(ValueError, match=r"Expected sae.n_updates of at least 1, got 0"):
        PAnneal(4, 8, n_updates=0)
