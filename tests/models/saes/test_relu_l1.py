import copy

import pytest
import torch

from src.models.saes.relu_l1 import ReLUL1
from src.models.saes.step import TrainingProgress
from src.ops.dense_latents import DenseLatents
from src.ops.ghost_gradients import ghost_loss
from src.ops.losses import norm_scaled_errors
from src.ops.resampling import draw_rows
from src.ops.sparse_latents import SparseLatents

D_IN, N_LATENTS = 6, 24
APRIL = {"l1_by_atom_norm": True, "decoder_constraint": "none", "error_scale": "sum"}
GHOSTS = {"ghost_gradients": True, "error_scale": "input_norm", "dead_after": 2}
AUXK = {"aux_coefficient": 0.5, "k_aux": 2, "dead_after": 1}
CASES = [{}, APRIL, AUXK, AUXK | {"k_aux": 100, "aux_over_variance": True}, GHOSTS, {"use_b_enc": False}]


def _sae(dtype=torch.float32, density=1.0, n_dead=0, **options):
    torch.manual_seed(0)
    sae = ReLUL1(D_IN, N_LATENTS, **{"l1_coefficient": 0.1, **options}).to(dtype)
    with torch.no_grad():
        sae.b_dec.normal_(0, 0.3)
        sae.W_dec *= torch.linspace(0.5, 2, N_LATENTS).to(dtype).unsqueeze(1)
        if sae.use_b_enc:
            sae.b_enc.normal_(0, 0.3)
            sae.b_enc[:n_dead] = -10.0
    sae.silent_for[:n_dead] = 5
    sae.density.fill_(density)
    return sae


def _batch(n_rows=32, seed=0, dtype=torch.float32):
    return torch.randn(n_rows, D_IN, generator=torch.Generator().manual_seed(seed)).to(dtype)


def _gradients(sae, loss):
    parameters = {name: value for name, value in sae.named_parameters() if value.requires_grad}
    return dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))


def _dense_losses(sae, x, dead):
    """The definitions, dense and by torch's own autograd."""
    pre_latents = (x - sae.b_dec) @ sae.W_enc.T + (sae.b_enc if sae.use_b_enc else 0)
    latents = pre_latents.relu()
    reconstruction = latents @ sae.W_dec + sae.b_dec
    error = (reconstruction - x).square()
    per_row = {"mean": error.mean(1), "sum": error.sum(1), "input_norm": error.mean(1) / x.norm(dim=1)}
    weights = sae.W_dec.norm(dim=1) if sae.l1_by_atom_norm else 1.0
    losses = {"mse": per_row[sae.error_scale].mean(), "l1": sae.l1_coefficient * (latents * weights).sum(1).mean()}
    residual = (x - reconstruction).detach()
    if sae.ghost_gradients:
        errors = norm_scaled_errors(reconstruction, x)
        losses["ghost"] = ghost_loss(pre_latents[:, dead], sae.W_dec[dead], residual, errors)
    elif sae.aux_coefficient:
        silent = pre_latents[:, dead].relu()
        silent = silent * (silent >= silent.topk(min(sae.k_aux, silent.shape[1]), dim=1).values[:, -1:])
        error = (silent @ sae.W_dec[dead] - residual).square()
        variance = (residual - residual.mean(0)).square().sum()
        losses["aux"] = sae.aux_coefficient * (error.sum() / variance if sae.aux_over_variance else error.mean())
    return losses


@pytest.mark.parametrize("density", [0.0, 1.0])
@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients_equal_the_dense_definitions(case, density):
    sae, x = _sae(torch.float64, density, n_dead=4, **case), _batch(dtype=torch.float64)
    dead = torch.arange(4)
    expected = _dense_losses(sae, x, dead)
    step = sae.step(x)
    assert isinstance(step.latents, SparseLatents if density == 0 else DenseLatents)
    assert step.losses.keys() == expected.keys()
    for name, loss in step.losses.items():
        torch.testing.assert_close(loss, expected[name], msg=name)
    theirs = _gradients(sae, sum(expected.values()))
    for name, gradient in _gradients(sae, step.loss).items():
        torch.testing.assert_close(gradient, theirs[name], msg=name)


@pytest.mark.parametrize("x", [_batch(80), _batch(1), _batch(8).repeat(3, 1), torch.zeros(4, D_IN), _batch(6).T[:, :6]])
@pytest.mark.parametrize("case", CASES)
def test_sparse_and_dense_paths_agree_in_single_precision(case, x):
    results = []
    for density in (0.0, 1.0):
        sae = _sae(density=density, n_dead=4, **case)
        step = sae.step(x)
        results.append({"loss": step.loss.detach(), "recon": step.reconstruction.detach()})
        results[-1] |= _gradients(sae, step.loss) | {"silent_for": sae.silent_for.float(), "density": sae.density}
    for name, sparse in results[0].items():
        largest = float(results[1][name].abs().max())
        torch.testing.assert_close(sparse, results[1][name], rtol=0, atol=1e-5 * largest, msg=name)


def test_density_follows_the_last_training_batch_and_decides_the_path():
    sae = _sae()
    share = float((sae.pre_latents(_batch()) > 0).double().mean())
    assert isinstance(sae.step(_batch()).latents, DenseLatents)
    assert float(sae.density) == pytest.approx(share)
    with torch.no_grad():
        sae.b_enc.fill_(-10.0)
    assert isinstance(sae.step(_batch()).latents, DenseLatents)  # it does not know yet
    assert sae.density == 0
    assert isinstance(sae.step(_batch()).latents, SparseLatents)
    sae.eval()
    sae.density.fill_(0.5)
    sae.step(_batch())
    assert sae.density == 0.5


@pytest.mark.parametrize("density", [0.0, 1.0])
def test_inference_is_training_s_forward(density):
    sae, x = _sae(density=density), _batch()
    trained = sae.step(x).latents.to_dense()
    torch.testing.assert_close(sae.eval().encode(x).to_dense(), trained)
    torch.testing.assert_close(sae.reconstruct(x), trained @ sae.W_dec + sae.b_dec)


def test_april_penalty_does_not_change_when_length_moves_between_atom_and_latent():
    sae, x = _sae(torch.float64, **APRIL), _batch(dtype=torch.float64)
    other = copy.deepcopy(sae)
    with torch.no_grad():
        other.W_enc *= 3
        other.b_enc *= 3
        other.W_dec /= 3
    torch.testing.assert_close(other.step(x).loss, sae.step(x).loss)
    plain = _sae(torch.float64, **APRIL | {"l1_by_atom_norm": False})
    assert float(plain.step(x).losses["l1"].detach()) != float(sae.step(x).losses["l1"].detach())


@pytest.mark.parametrize("density", [0.0, 1.0])
def test_ghost_gradients_reach_dead_neurons_only(density):
    sae, x = _sae(density=density, n_dead=4, **GHOSTS), _batch()
    gradients = _gradients(sae, sae.step(x).losses["ghost"])
    for name in ("W_enc", "b_enc", "W_dec"):
        touched = gradients[name].to_dense().reshape(N_LATENTS, -1).any(1)
        assert touched.tolist() == [True] * 4 + [False] * (N_LATENTS - 4), name


def test_ghost_gradients_need_dead_neurons_and_training():
    assert _sae(**GHOSTS).step(_batch()).losses["ghost"] == 0
    assert _sae(n_dead=4, **GHOSTS).eval().step(_batch()).losses["ghost"] == 0


def test_ghost_gradients_revive():
    alive = []
    for options in (GHOSTS, {"error_scale": "input_norm"}):
        sae = _sae(n_dead=8, **options)
        with torch.no_grad():
            sae.b_enc[:8] = -4.0
        optimizer = torch.optim.Adam(sae.parameters(), lr=0.05)
        for seed in range(100):
            sae.step(_batch(64, seed)).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        alive.append(int((sae.silent_for[:8] == 0).sum()))
    assert alive[0] > alive[1]


def test_sparsity_warms_up():
    full = _sae().step(_batch()).losses["l1"]
    sae = _sae(sparsity_warmup_steps=4)
    for step, share in ((0, 0.0), (1, 0.25), (4, 1.0), (7, 1.0)):
        torch.testing.assert_close(sae.step(_batch(), TrainingProgress(step)).losses["l1"], share * full)


def _stepped(sae):
    """The optimizer after one step: all moments are set."""
    optimizer = torch.optim.Adam([p for p in sae.parameters() if p.requires_grad], lr=1e-3, fused=True)
    for parameter in sae.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    return optimizer


def _resampled(sae, x, progress):
    """The neurons whose atoms `finish_step_` changes."""
    optimizer = _stepped(sae)
    before = sae.W_dec.detach().clone()
    sae.finish_step_(x, progress, optimizer)
    return (sae.W_dec != before).any(1).nonzero().squeeze(1).tolist(), optimizer


@pytest.mark.parametrize("unit_inputs", [True, False])
@pytest.mark.parametrize("weights", ["norm", "squared_norm"])
def test_resampling_points_dead_neurons_at_badly_rebuilt_inputs(weights, unit_inputs):
    sae, x = _sae(n_dead=3, resample_every=5, resample_weights=weights, resample_unit_inputs=unit_inputs), _batch()
    optimizer = _stepped(sae)
    errors = (x - sae.reconstruct(x)).norm(dim=1).detach() ** (2 if weights == "squared_norm" else 1)
    drawn = draw_rows(errors, 3, seed=10)
    length = sae.W_enc[3:].norm(dim=1).mean().detach()
    others = {name: value[3:].clone() for name, value in sae.named_parameters() if name != "b_dec"}
    sae.finish_step_(x, TrainingProgress(10), optimizer)
    directions = torch.nn.functional.normalize(x[drawn], dim=1)
    torch.testing.assert_close(sae.W_dec[:3].detach(), directions)
    torch.testing.assert_close(sae.W_enc[:3].detach(), 0.2 * length * (directions if unit_inputs else x[drawn]))
    assert not sae.b_enc[:3].any()
    for name, value in others.items():
        assert torch.equal(sae.get_parameter(name)[3:], value)
        for moment in ("exp_avg", "exp_avg_sq"):
            moments = optimizer.state[sae.get_parameter(name)][moment]
            assert not moments[:3].any()
            assert moments[3:].all()
    assert not sae.silent_for[:3].any()


def test_a_resampled_neuron_fires_again():
    sae, x = _sae(n_dead=3, resample_every=5, b_dec_init="zero"), _batch()
    with torch.no_grad():
        sae.b_dec.zero_()
    assert not (sae.encode(x).to_dense()[:, :3]).any()
    assert _resampled(sae, x, TrainingProgress(5))[0] == [0, 1, 2]
    assert (sae.encode(x).to_dense()[:, :3] > 0).any(0).all()


def test_counters_stay_where_asked():
    sae = _sae(n_dead=3, resample_every=5, resample_reset=False)
    assert _resampled(sae, _batch(), TrainingProgress(5))[0] == [0, 1, 2]
    assert sae.silent_for[:3].tolist() == [5, 5, 5]


@pytest.mark.parametrize(
    ("options", "steps"),
    # In epochs of 4 steps: at the end of epochs 2 and 4, counted from 0, and not at the end of the training of 24.
    [({"resample_every": 6}, [0, 6, 12, 18]), ({"resample_every_epochs": 2}, [7, 15])],
)
def test_resampling_has_its_times(options, steps):
    seen = []
    for step in range(24):
        sae = _sae(n_dead=3, **options)
        progress = TrainingProgress(step, total_steps=24, steps_per_epoch=4)
        if _resampled(sae, _batch(), progress)[0]:
            seen.append(step)
    assert seen == steps


@pytest.mark.parametrize(
    ("options", "expected"),
    # Counters are 0 to 9: more than half of 8 are 5 and above, unless a number is given.
    [({}, [5, 6, 7, 8, 9]), ({"resample_silent_for": 8}, [8, 9])],
)
def test_resampling_takes_neurons_that_were_silent_long_enough(options, expected):
    sae = _sae(resample_every=8, **options)
    sae.silent_for[:10] = torch.arange(10)
    assert _resampled(sae, _batch(), TrainingProgress(8))[0] == expected


def test_resampling_without_b_enc_and_with_fewer_rows_than_dead_neurons():
    sae = _sae(n_dead=0, use_b_enc=False, resample_every=5)
    sae.silent_for.fill_(9)
    assert len(_resampled(sae, _batch(4), TrainingProgress(5))[0]) == 4


def test_nothing_is_resampled_from_a_batch_without_errors():
    sae = _sae(n_dead=3, resample_every=5)
    optimizer = _stepped(sae)
    with torch.no_grad():
        sae.b_enc.fill_(-10.0)
    before = copy.deepcopy(sae.state_dict())
    sae.finish_step_(sae.b_dec.detach().repeat(5, 1), TrainingProgress(5), optimizer)
    assert all(torch.equal(value, before[name]) for name, value in sae.state_dict().items())
    assert optimizer.state[sae.W_enc]["exp_avg"].all()


def test_epochs_of_unknown_length_are_refused():
    sae = _sae(resample_every_epochs=2)
    with pytest.raises(ValueError, match=r"Expected steps_per_epoch with sae.resample_every_epochs, got None"):
        sae.finish_step_(_batch(), TrainingProgress(7), torch.optim.Adam(sae.parameters()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"l1_coefficient": -1}, "sae.l1_coefficient of at least 0, got -1"),
        ({"ghost_gradients": True}, "error_scale=input_norm and aux_coefficient=0, got mean and 0.0"),
        (GHOSTS | {"aux_coefficient": 0.1}, "aux_coefficient=0, got input_norm and 0.1"),
        ({"resample_every": 0}, "sae.resample_every of at least 1, got 0"),
        ({"resample_every_epochs": 0}, "sae.resample_every_epochs of at least 1, got 0"),
        ({"resample_silent_for": 0}, "sae.resample_silent_for of at least 1, got 0"),
        ({"resample_every": 2, "resample_every_epochs": 2}, "one of sae.resample_every and .*, got both"),
        ({"resample_every": 2, "dead_unit": "tokens"}, "sae.dead_unit=batches with resampling, got tokens"),
        ({"resample_weights": "x"}, "sae.resample_weights to be one of"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ReLUL1(D_IN, N_LATENTS, **options)
