"""What all families share: input norms, starts, constraints, error scales, dead counters, and their errors."""

import copy

import pytest
import torch

from src.models.saes.batch_topk import BatchTopK
from src.models.saes.relu_l1 import ReLUL1
from src.models.saes.step import TrainingProgress
from src.models.saes.topk import TopK
from src.ops.geometric_median import geometric_median
from src.stores.sae import load_sae, save_sae

D_IN, N_LATENTS = 6, 20
NORMS = ["none", "centre", "global_scale", "z_score", "layer_norm"]


def _sae(family=ReLUL1, **options):
    torch.manual_seed(0)
    return family(D_IN, N_LATENTS, **options)


def _batch(n_rows=40, seed=0):
    """Raw activations, far from centred and of no common scale."""
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(n_rows, D_IN, generator=generator) + torch.linspace(-4, 9, D_IN)


def _batches():
    return [_batch(40), _batch(7, 1), _batch(1, 2)]


def test_input_norms_are_fitted_over_all_rows():
    rows = torch.cat(_batches())
    centred, scaled = _sae(input_norm="centre"), _sae(input_norm="global_scale")
    for sae in (centred, scaled):
        sae.fit_input_norm_(_batches())
    torch.testing.assert_close(centred.input_mean, rows.mean(0))
    assert torch.equal(centred.input_scale, torch.ones(D_IN))
    torch.testing.assert_close(scaled.input_scale, rows.square().mean().sqrt().expand(D_IN))
    assert not scaled.input_mean.any()
    normalized, _ = scaled.normalize(rows)
    assert float(normalized.square().sum(1).mean()) == pytest.approx(D_IN, rel=1e-5)


@pytest.mark.parametrize("batches", [[], [torch.zeros(0, D_IN)], [torch.zeros(5, D_IN)]])
def test_input_norms_need_activations(batches):
    n_rows = sum(len(batch) for batch in batches)
    with pytest.raises(ValueError, match=rf"activations to take sae.input_norm=centre from, got {n_rows} rows"):
        _sae(input_norm="centre").fit_input_norm_(batches)


@pytest.mark.parametrize("input_norm", NORMS)
def test_decode_undoes_the_input_norm(input_norm):
    # With a unit matrix for both weights and nothing clipped, an SAE gives back what it is given.
    sae = ReLUL1(D_IN, 2 * D_IN, input_norm=input_norm)
    sae.fit_input_norm_(_batches())
    with torch.no_grad():
        signed = torch.cat([torch.eye(D_IN), -torch.eye(D_IN)])
        sae.W_enc.copy_(signed)
        sae.W_dec.copy_(signed)
        sae.b_dec.normal_()
    torch.testing.assert_close(sae.reconstruct(_batch()), _batch(), rtol=1e-5, atol=1e-4)
    assert float(sae.step(_batch()).losses["mse"].detach()) < 1e-9


@pytest.mark.parametrize("family", [ReLUL1, TopK])
@pytest.mark.parametrize("input_norm", NORMS)
def test_input_norms_survive_export(input_norm, family, tmp_path):
    sae = _sae(family, input_norm=input_norm)
    sae.fit_input_norm_(_batches())
    sae.initialize_from_(_batch())
    save_sae(sae.eval(), tmp_path)
    loaded = load_sae(tmp_path)
    assert loaded.init_arguments() == sae.init_arguments()
    assert all(torch.equal(value, sae.state_dict()[name]) for name, value in loaded.state_dict().items())
    assert loaded.encode(_batch()).n_entries
    assert torch.equal(loaded.encode(_batch()).to_dense(), sae.encode(_batch()).to_dense())
    assert torch.equal(loaded.reconstruct(_batch()), sae.reconstruct(_batch()))


def test_errors_are_measured_after_the_input_norm():
    for input_norm in ("z_score", "layer_norm"):
        sae = _sae(input_norm=input_norm)
        torch.testing.assert_close(
            sae.step(100 * _batch() + 5).losses["mse"], sae.step(_batch()).losses["mse"], rtol=1e-4, atol=0
        )


def test_b_dec_starts_from_the_normalized_first_batch():
    blocks = _batch(40).view(8, 5, D_IN)
    mean = _sae(b_dec_init="mean", input_norm="z_score")
    mean.initialize_from_(blocks)
    torch.testing.assert_close(mean.b_dec.data, mean.normalize(_batch(40))[0].mean(0))
    by_rows, by_blocks = _sae(b_dec_init="geometric_median"), _sae(b_dec_init="geometric_median")
    by_rows.initialize_from_(_batch(40))
    by_blocks.initialize_from_(blocks)
    torch.testing.assert_close(by_rows.b_dec.data, geometric_median(_batch(40)))
    torch.testing.assert_close(by_blocks.b_dec.data, geometric_median(blocks).mean(0))
    assert not torch.allclose(by_rows.b_dec, by_blocks.b_dec, atol=1e-2)


def test_weights_start_as_asked():
    for length in (1.0, 0.1):
        sae = _sae(atom_norm_init=length)
        assert torch.equal(sae.W_enc, sae.W_dec)
        torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.full((N_LATENTS,), length))
    sae = _sae(encoder_init="kaiming", atom_norm_init=0.1)
    bound = (6 / N_LATENTS) ** 0.5
    assert 0.9 * bound < float(sae.W_enc.detach().abs().max()) <= bound
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.full((N_LATENTS,), 0.1))
    torch.testing.assert_close(sae.W_dec, 0.1 * torch.nn.functional.normalize(sae.W_enc, dim=1))


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "strided"])
@pytest.mark.parametrize("family", [ReLUL1, TopK, BatchTopK])
def test_image_blocks_and_strided_rows_are_plain_rows(family, layout):
    rows = _batch(40)
    blocks = rows.view(8, 5, D_IN)
    if layout == "transposed":
        rows, blocks = rows.T.contiguous().T, blocks.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    elif layout == "strided":
        rows, blocks = (torch.stack([x, x], -1).flatten(-2)[..., ::2] for x in (rows, blocks))
    expected = _sae(family).step(_batch(40))
    for activations in (rows, blocks):
        step = _sae(family).step(activations)
        assert step.reconstruction.shape == (40, D_IN)
        torch.testing.assert_close(step.loss, expected.loss)
        torch.testing.assert_close(step.latents.to_dense(), expected.latents.to_dense())


def test_the_class_token_weighs_in_training_with_blocks_only():
    options = {"error_scale": "input_norm", "decoder_constraint": "none"}
    plain, weighted = _sae(**options), _sae(class_token_weight=4.0, **options)
    blocks, rows = _batch(40).view(8, 5, D_IN), _batch(40)
    mse = {sae: float(sae.step(blocks).losses["mse"].detach()) for sae in (plain, weighted)}
    of_class_tokens = float(plain.step(blocks[:, 0]).losses["mse"].detach())
    assert mse[weighted] == pytest.approx(mse[plain] + 3 * of_class_tokens / 5, rel=1e-5)
    for activations, training in ((rows, True), (blocks, False)):
        losses = [float(sae.train(training).step(activations).losses["mse"].detach()) for sae in (plain, weighted)]
        assert losses[0] == losses[1]


def _optimized(constraint, atom_norm_init):
    """An SAE before its first optimizer step and after, with what `constrain_*` does around it."""
    sae = _sae(decoder_constraint=constraint, atom_norm_init=atom_norm_init)
    before = copy.deepcopy(sae)
    optimizer = torch.optim.SGD(sae.parameters(), lr=0.5)
    sae.constrain_before_forward_()
    sae.step(_batch()).loss.backward()
    sae.constrain_gradient_()
    sae.constrain_before_step_()
    gradient = sae.W_dec.grad.clone()
    optimizer.step()
    sae.constrain_after_step_()
    return before, sae, gradient


@pytest.mark.parametrize("atom_norm_init", [1.0, 0.5])
@pytest.mark.parametrize("constraint", ["after_step", "before_step", "before_forward", "none"])
def test_decoder_constraints(constraint, atom_norm_init):
    before, after, gradient = _optimized(constraint, atom_norm_init)
    unit = torch.nn.functional.normalize(before.W_dec.detach(), dim=1)
    along = (gradient * unit).sum(1).abs().max() / gradient.abs().max()
    assert (float(along) < 1e-5) == (constraint != "none")
    # What the optimizer steps from: the constraint before the step or the forward pass has made atoms unit-norm.
    stepped = (unit if constraint.startswith("before") else before.W_dec.detach()) - 0.5 * gradient
    lengths = after.W_dec.detach().norm(dim=1, keepdim=True)
    assert torch.allclose(lengths, torch.ones_like(lengths)) == (constraint == "after_step")
    expected = torch.nn.functional.normalize(stepped, dim=1) if constraint == "after_step" else stepped
    torch.testing.assert_close(after.W_dec.detach(), expected)


@pytest.mark.parametrize(("dead_unit", "dead_after"), [("batches", 2), ("tokens", 80)])
def test_dead_neurons_are_counted_in_batches_or_tokens(dead_unit, dead_after):
    sae = _sae(dead_unit=dead_unit, dead_after=dead_after)
    with torch.no_grad():
        sae.b_enc[:5] = -1000.0
        sae.b_enc[5:] = 1000.0
    fractions = [float(sae.step(_batch().view(8, 5, D_IN)).metrics["dead_fraction"]) for _ in range(3)]
    assert fractions == pytest.approx([0, 0.25, 0.25])
    n_counted = 3 if dead_unit == "batches" else 120
    assert sae.silent_for.tolist() == [n_counted] * 5 + [0] * 15


@pytest.mark.parametrize("observe", [False, True])
def test_evaluation_moves_state_only_where_asked(observe):
    for family in (ReLUL1, TopK):
        sae = _sae(family, observe_validation=observe).eval()
        before = copy.deepcopy(sae.state_dict())
        sae.step(_batch())
        moved = {name for name, value in sae.state_dict().items() if not torch.equal(value, before[name])}
        assert moved <= ({"silent_for", "threshold"} if observe else set())
        assert ("silent_for" in moved) == (observe and bool((sae.silent_for > 0).any()))
        assert ("threshold" in moved) == (observe and family is TopK)


def test_the_loss_is_the_sum_and_l0_the_mean_count():
    sae = _sae(l1_coefficient=0.3)
    step = sae.step(_batch(), TrainingProgress())
    torch.testing.assert_close(step.loss, step.losses["mse"] + step.losses["l1"])
    counts = (step.latents.to_dense() > 0).sum(1).double()
    assert float(step.metrics["l0"]) == pytest.approx(float(counts.mean()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_latents": 0}, "positive sizes, got d_in=6 and n_latents=0"),
        ({"expansion": 0.01}, "positive sizes, got d_in=6 and n_latents=0"),
        ({"input_norm": "x"}, r"sae.input_norm to be one of \('none', .*\), got 'x'"),
        ({"encoder_init": "x"}, "sae.encoder_init to be one of"),
        ({"b_dec_init": "x"}, "sae.b_dec_init to be one of"),
        ({"atom_norm_init": -1}, "sae.atom_norm_init of at least 0, got -1"),
        ({"decoder_constraint": "x"}, "sae.decoder_constraint to be one of"),
        ({"error_scale": "x"}, "sae.error_scale to be one of"),
        ({"dead_unit": "x"}, "sae.dead_unit to be one of"),
        ({"class_token_weight": -1}, "sae.class_token_weight of at least 0, got -1"),
        ({"sparsity_warmup_steps": -1}, "sae.sparsity_warmup_steps of at least 0, got -1"),
        ({"dead_after": 0}, "sae.dead_after of at least 1, got 0"),
        ({"aux_coefficient": -0.5}, "sae.aux_coefficient of at least 0, got -0.5"),
        ({"k_aux": 0}, "sae.k_aux of at least 1, got 0"),
    ],
)
def test_shared_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ReLUL1(D_IN, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "sae.k within 1 and n_latents=20, got 0"),
        ({"k": 21}, "sae.k within 1 and n_latents=20, got 21"),
        ({"k_anneal_steps": 0}, "sae.k_anneal_steps of at least 1, got 0"),
        ({"l1_coefficient": -1}, "sae.l1_coefficient of at least 0, got -1"),
        ({"threshold_decay": -0.1}, "sae.threshold_decay within 0 and 1, got -0.1"),
        ({"threshold_start_step": -1}, "sae.threshold_start_step of at least 0, got -1"),
        ({"threshold_statistic": "x"}, "sae.threshold_statistic to be one of"),
        ({"inference": "x"}, "sae.inference to be one of"),
    ],
)
def test_options_of_k_sparse_saes_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TopK(D_IN, N_LATENTS, **options)


@pytest.mark.parametrize("input_norm", ["z_score", "layer_norm"])
def test_rows_that_were_normalized_need_their_statistics(input_norm):
    sae = _sae(input_norm=input_norm)
    with pytest.raises(ValueError, match=f"row statistics to decode with input_norm={input_norm}, got none"):
        sae.decode(sae.encode(_batch()))
    latents, statistics = sae.encode(_batch()), sae.normalize(_batch())[1]
    assert torch.equal(sae.decode(latents, statistics), sae.reconstruct(_batch()))


@pytest.mark.parametrize("input_norm", NORMS[1:])
def test_inputs_are_normalized_once(input_norm):
    with pytest.raises(ValueError, match=f"sae.input_norm=none with standardised activations, got {input_norm}"):
        _sae(input_norm=input_norm).set_input_statistics(torch.zeros(D_IN), torch.ones(D_IN))
