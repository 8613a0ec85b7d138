import copy

import pytest
import torch

from src.models.saes.batch_topk import BatchTopK

D_IN, N_LATENTS, K = 6, 20, 3


def _sae(seed=0, **options):
    torch.manual_seed(seed)
    return BatchTopK(D_IN, N_LATENTS, k=K, **options)


def _batch(n_rows=32, seed=0):
    return torch.randn(n_rows, D_IN, generator=torch.Generator().manual_seed(seed))


def _dense_step(sae, activations):
    """The definition, dense and by torch's own autograd: reconstruction error of the k * rows largest."""
    pre_latents = torch.relu((activations - sae.b_dec) @ sae.W_enc.T + sae.b_enc)
    n_kept = sae.k * activations.shape[0]
    smallest = pre_latents.detach().flatten().topk(n_kept).values[-1]
    latents = pre_latents * (pre_latents >= smallest)
    return latents, (latents @ sae.W_dec + sae.b_dec - activations).square().mean()


@pytest.mark.parametrize("n_rows", [1, 7, 32])
def test_step_and_gradients_equal_the_dense_definition(n_rows):
    sae = _sae().double()
    with torch.no_grad():
        sae.b_enc.normal_()
        sae.b_dec.normal_()
    activations = _batch(n_rows).double()
    latents, loss = _dense_step(sae, activations)
    loss.backward()
    expected = {name: parameter.grad.clone() for name, parameter in sae.named_parameters()}
    sae.zero_grad()
    step = sae.step(activations)
    step.loss.backward()
    assert step.latents.n_entries == K * n_rows
    torch.testing.assert_close(step.latents.to_dense(), latents)
    torch.testing.assert_close(step.loss, loss)
    for name, parameter in sae.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name])


def test_selection_does_not_depend_on_the_candidate_threshold():
    sae = _sae()
    expected = sae.step(_batch()).latents.detach().to_dense()
    smallest = expected[expected > 0].min().item()
    for guess in (0.0, 0.5 * smallest, 0.99 * smallest, smallest, 5 * smallest):
        other = _sae()
        other.candidate_threshold = torch.tensor(guess)
        assert torch.equal(other.step(_batch()).latents.to_dense(), expected), guess


def test_running_candidate_threshold_follows_the_batches():
    sae = _sae()
    for seed, scale in enumerate((1.0, 1.0, 0.01, 100.0)):
        batch = scale * _batch(seed=seed)
        fresh = copy.deepcopy(sae)
        fresh.candidate_threshold = None
        assert torch.equal(sae.step(batch).latents.to_dense(), fresh.step(batch).latents.to_dense())
        assert sae.candidate_threshold is not None


def test_threshold_starts_at_the_first_smallest_and_averages():
    sae, from_zero = _sae(threshold_decay=0.75), _sae(threshold_decay=0.75, threshold_from_zero=True)
    first, second = (sae.step(_batch(seed=seed)).latents.values.min().item() for seed in (0, 1))
    assert float(sae.threshold) == pytest.approx(0.75 * first + 0.25 * second)
    from_zero.step(_batch(seed=0))
    assert float(from_zero.threshold) == pytest.approx(0.25 * first)


def test_evaluation_keeps_what_exceeds_the_threshold_and_moves_nothing():
    sae = _sae().eval()
    sae.threshold.fill_(0.8)
    before = copy.deepcopy(sae.state_dict())
    step = sae.step(_batch())
    pre_latents = sae.pre_latents(_batch())
    expected = torch.where(pre_latents > 0.8, pre_latents, 0.0)
    torch.testing.assert_close(step.latents.to_dense(), expected)
    torch.testing.assert_close(sae.encode(_batch()).to_dense(), expected)
    assert all(torch.equal(value, before[name]) for name, value in sae.state_dict().items())


def test_encode_drops_negative_pre_latents_before_training():
    latents = _sae().encode(_batch())
    assert latents.values.min() > 0


def test_dead_counters_count_batches_of_silence():
    sae = _sae()
    with torch.no_grad():
        sae.b_enc[:4] = -100.0
    for seed in range(3):
        sae.step(_batch(200, seed))
    assert sae.silent_for[:4].tolist() == [3] * 4
    assert sae.silent_for[4:].max() == 0


@pytest.mark.parametrize(("detach", "k_aux"), [(True, 2), (False, 2), (False, 9)])
def test_auxk_equals_its_definition(detach, k_aux):
    sae = _sae(detach_residual=detach, k_aux=k_aux, dead_after=1, aux_coefficient=0.5).double()
    with torch.no_grad():
        sae.b_enc[:5] = -1.2
    activations = _batch().double()
    step = sae.step(activations)
    dead = (step.latents.to_dense() == 0).all(0)
    assert dead[:5].any()
    latents, mse = _dense_step(sae, activations)
    residual = activations - (latents @ sae.W_dec + sae.b_dec)
    residual = residual.detach() if detach else residual
    silent = torch.relu((activations - sae.b_dec) @ sae.W_enc.T + sae.b_enc)[:, dead]
    k_dead = min(k_aux, silent.shape[1])
    silent = silent * (silent >= silent.topk(k_dead, dim=1).values[:, -1:])
    aux = 0.5 * (silent @ sae.W_dec[dead] - residual).square().mean()
    torch.testing.assert_close(step.losses["aux"], aux)
    parameters = dict(sae.named_parameters())
    expected = torch.autograd.grad(mse + aux, list(parameters.values()))
    step.loss.backward()
    for (name, parameter), gradient in zip(parameters.items(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, msg=name)


def test_auxk_revives_dead_neurons():
    def n_silent(coefficient):
        sae = _sae(aux_coefficient=coefficient)
        with torch.no_grad():
            sae.b_enc[:8] = -2.5
        optimizer = torch.optim.Adam(sae.parameters(), lr=0.02)
        for seed in range(60):
            sae.step(_batch(128, seed)).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return int((sae.silent_for > 0).sum())

    assert n_silent(1.0) < n_silent(0.0)


def test_latents_do_not_leave_the_batch():
    sae = _sae().eval()
    sae.threshold.fill_(0.5)
    together = sae.encode(_batch(9)).to_dense()
    alone = torch.cat([sae.encode(row).to_dense() for row in _batch(9).split(1)])
    torch.testing.assert_close(together, alone)


def test_standardised_inputs_are_undone():
    plain, standardised = _sae(), _sae()
    mean, scale = torch.linspace(-3, 3, D_IN), torch.linspace(0.5, 2, D_IN)
    standardised.set_input_statistics(mean, scale)
    raw = _batch() * scale + mean
    for sae in (plain, standardised):
        sae.threshold.fill_(0.5)
    torch.testing.assert_close(standardised.pre_latents(raw), plain.pre_latents(_batch()), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        standardised.reconstruct(raw), plain.reconstruct(_batch()) * scale + mean, rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(standardised.step(raw).loss, plain.step(_batch()).loss)


def test_unit_norm_is_undone():
    sae = _sae(input_norm="z_score").eval()
    sae.threshold.fill_(0.3)
    shifted = sae.reconstruct(5 * _batch() + 7)
    torch.testing.assert_close(shifted, 5 * sae.reconstruct(_batch()) + 7, rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="Expected row statistics"):
        sae.decode(sae.encode(_batch()))


def test_atoms_stay_on_the_sphere():
    sae = _sae()
    assert torch.allclose(sae.W_dec.norm(dim=1), torch.ones(N_LATENTS))
    assert torch.equal(sae.W_enc, sae.W_dec)
    optimizer = torch.optim.Adam(sae.parameters(), lr=0.1)
    sae.step(_batch()).loss.backward()
    sae.constrain_gradient_()
    assert torch.allclose((sae.W_dec.grad * sae.W_dec).sum(1), torch.zeros(N_LATENTS), atol=1e-7)
    sae.constrain_before_step_()
    optimizer.step()
    assert not torch.allclose(sae.W_dec.norm(dim=1), torch.ones(N_LATENTS))
    sae.constrain_after_step_()
    assert torch.allclose(sae.W_dec.norm(dim=1), torch.ones(N_LATENTS))


def test_decoder_bias_starts_at_the_mean_of_the_first_batch():
    sae, at_zero = _sae(), _sae(b_dec_init="zero")
    for model in (sae, at_zero):
        model.initialize_from_(_batch() + 3)
    torch.testing.assert_close(sae.b_dec.data, (_batch() + 3).mean(0))
    assert not at_zero.b_dec.any()


def test_arguments_rebuild_the_sae():
    sae = BatchTopK(D_IN, expansion=2.5, k=2, use_b_enc=False, decoder_constraint="none")
    arguments = sae.init_arguments()
    assert arguments["n_latents"] == 15
    assert BatchTopK(**arguments).init_arguments() == arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"d_in": 0}, "positive sizes, got d_in=0"),
        ({"d_in": 4, "k": 17}, "within 1 and n_latents=16, got 17"),
        ({"d_in": 4, "k": 2, "encoder_init": "x"}, "sae.encoder_init to be one of"),
        ({"d_in": 4, "k": 2, "b_dec_init": "x"}, "sae.b_dec_init to be one of"),
        ({"d_in": 4, "k": 2, "decoder_constraint": "x"}, "sae.decoder_constraint to be one of"),
        ({"d_in": 4, "k": 2, "aux_coefficient": -1}, "sae.aux_coefficient of at least 0, got -1"),
        ({"d_in": 4, "k": 2, "k_aux": 0}, "sae.k_aux of at least 1, got 0"),
        ({"d_in": 4, "k": 2, "dead_after": 0}, "sae.dead_after of at least 1, got 0"),
        ({"d_in": 4, "k": 2, "threshold_decay": 1.5}, "sae.threshold_decay within 0 and 1, got 1.5"),
    ],
)
def test_refuses_what_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        BatchTopK(**arguments)


def test_refuses_statistics_and_activations_that_do_not_fit():
    sae = _sae()
    with pytest.raises(ValueError, match=r"input mean of shape \(6,\), got \(5,\)"):
        sae.set_input_statistics(torch.zeros(5), torch.ones(6))
    with pytest.raises(ValueError, match="positive input scales, got a smallest of 0"):
        sae.set_input_statistics(torch.zeros(6), torch.tensor([1.0, 1, 1, 1, 1, 0]))
    with pytest.raises(ValueError, match="input_norm=none"):
        _sae(input_norm="z_score").set_input_statistics(torch.zeros(6), torch.ones(6))
    with pytest.raises(ValueError, match=r"\[n_rows, 6\], got \(2, 5\)"):
        sae.encode(torch.zeros(2, 5))
