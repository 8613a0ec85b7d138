import json

import pytest
import torch

from src.models.saes.step import TrainingProgress
from src.models.saes.topk import TopK
from src.stores.sae import load_sae, save_sae

D_IN, N_LATENTS, K = 6, 20, 3


def _sae(dtype=torch.float64, **options):
    torch.manual_seed(0)
    sae = TopK(D_IN, N_LATENTS, **{"k": K, **options}).to(dtype)
    with torch.no_grad():
        sae.b_enc.normal_(0, 0.3)
        sae.b_dec.normal_(0, 0.3)
    return sae


def _batch(n_rows=32, seed=0, dtype=torch.float64):
    return torch.randn(n_rows, D_IN, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def _dense_latents(sae, x, k):
    """The definition, dense and by torch's own autograd: ReLU after the k largest of each row."""
    centred = x - sae.b_dec if sae.apply_b_dec_to_input else x
    pre_latents = centred @ sae.W_enc.T + (sae.b_enc if sae.use_b_enc else 0)
    smallest = pre_latents.detach().topk(k, dim=1).values[:, -1:]
    return pre_latents, (pre_latents * (pre_latents >= smallest)).relu()


def _gradients(sae, loss):
    parameters = [parameter for parameter in sae.parameters() if parameter.requires_grad]
    return torch.autograd.grad(loss, parameters)


CASES = [
    {},
    {"k": 1},
    {"k": N_LATENTS},
    {"use_b_enc": False, "error_scale": "sum"},
    {"apply_b_dec_to_input": False, "error_scale": "input_norm", "l1_coefficient": 0.1},
]


@pytest.mark.parametrize("n_rows", [1, 32])
@pytest.mark.parametrize("case", CASES)
def test_step_and_gradients_equal_the_dense_definition(case, n_rows):
    sae, x = _sae(**case), _batch(n_rows)
    latents = _dense_latents(sae, x, sae.k)[1]
    error = (latents @ sae.W_dec + sae.b_dec - x).square()
    mse = {
        "mean": error.mean(),
        "sum": error.sum(1).mean(),
        "input_norm": (error / x.norm(dim=1, keepdim=True)).mean(),
    }[sae.error_scale]
    l1 = sae.l1_coefficient * latents.sum(1).mean()
    step = sae.step(x)
    torch.testing.assert_close(step.latents.to_dense(), latents)
    torch.testing.assert_close(step.losses["mse"], mse)
    assert ("l1" in step.losses) == bool(sae.l1_coefficient)
    torch.testing.assert_close(step.loss, mse + l1)
    for ours, theirs in zip(_gradients(sae, step.loss), _gradients(sae, mse + l1), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("aux_over_variance", [False, True])
@pytest.mark.parametrize("k_aux", [1, 3, 100])
def test_auxk_and_its_gradients_equal_the_dense_definition(k_aux, aux_over_variance):
    sae = _sae(k_aux=k_aux, dead_after=1, aux_coefficient=0.5, aux_over_variance=aux_over_variance)
    with torch.no_grad():
        sae.b_enc[:9] = -3.0
    x = _batch()
    pre_latents, latents = _dense_latents(sae, x, K)
    dead = (latents == 0).all(0)
    assert 9 <= dead.sum() < N_LATENTS
    reconstruction = latents @ sae.W_dec + sae.b_dec
    residual = (x - reconstruction).detach()
    silent = pre_latents[:, dead].relu()
    silent = silent * (silent >= silent.topk(min(k_aux, silent.shape[1]), dim=1).values[:, -1:])
    error = (silent @ sae.W_dec[dead] - residual).square()
    variance = (residual - residual.mean(0)).square().sum()
    aux = 0.5 * (error.sum() / variance if aux_over_variance else error.mean())
    loss = (reconstruction - x).square().mean() + aux
    step = sae.step(x)
    torch.testing.assert_close(step.losses["aux"], aux)
    for ours, theirs in zip(_gradients(sae, step.loss), _gradients(sae, loss), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_rows_without_k_positive_pre_latents_keep_fewer():
    sae = _sae()
    with torch.no_grad():
        sae.b_enc.fill_(-2.0)
    latents = sae.step(_batch()).latents
    assert 0 < latents.n_entries < K * 32
    assert latents.values.min() > 0


def test_a_batch_with_nothing_above_zero_trains_the_bias_alone():
    sae = _sae()
    with torch.no_grad():
        sae.b_enc.fill_(-100.0)
    before = sae.threshold.clone()
    step = sae.step(_batch())
    step.loss.backward()
    assert step.latents.n_entries == 0
    assert sae.b_dec.grad.any()
    assert not sae.W_enc.grad.any()
    assert not sae.W_dec.grad.any()
    assert torch.equal(sae.threshold, before)


def test_inference_keeps_k_per_row_or_what_exceeds_the_threshold():
    by_k, by_threshold = _sae().eval(), _sae(inference="threshold").eval()
    x = _batch()
    expected = _dense_latents(by_k, x, K)[1]
    for latents in (by_k.encode(x), by_k.step(x).latents, by_k.encode_inputs(by_k.centre(x))):
        torch.testing.assert_close(latents.to_dense(), expected)
    by_threshold.threshold.fill_(1.0)
    pre_latents = by_threshold.pre_latents(x)
    torch.testing.assert_close(by_threshold.encode(x).to_dense(), pre_latents * (pre_latents > 1))


def test_a_row_s_latents_do_not_hang_on_its_batch():
    sae, x = _sae(), _batch()
    alone = torch.cat([sae.step(row).latents.to_dense() for row in x.split(1)])
    torch.testing.assert_close(sae.step(x).latents.to_dense(), alone)


def test_threshold_follows_the_mean_of_the_rows_smallest():
    sae = _sae(threshold_statistic="mean_of_row_min", threshold_decay=0.75, threshold_start_step=2)
    with torch.no_grad():
        sae.b_enc.fill_(-2.0)  # so that some rows keep nothing, and are left out of the mean
    means = []
    for step in range(4):
        latents = sae.step(_batch(seed=step), TrainingProgress(step)).latents.to_dense()
        assert not latents.any(1).all()
        smallest = torch.where(latents > 0, latents, torch.inf).amin(1)
        means.append(smallest[smallest.isfinite()].mean())
        if step < 2:
            assert sae.threshold == 0
    torch.testing.assert_close(sae.threshold, 0.75 * means[2] + 0.25 * means[3])


@pytest.mark.parametrize(
    ("lags", "expected"),
    # From d_in = 6 to 3 in 4 steps, rounded down: 6, 5.25, 4.5, 3.75, 3; lagging, the first keeps k.
    [(False, [6, 5, 4, 3, 3, 3]), (True, [3, 6, 5, 4, 3, 3])],
)
def test_k_is_annealed(lags, expected):
    sae = _sae(k_anneal_steps=4, k_anneal_lags=lags)
    with torch.no_grad():
        sae.b_enc.fill_(10.0)  # all are positive
    steps = [sae.step(_batch(), TrainingProgress(step)) for step in range(6)]
    assert [step.latents.n_entries / 32 for step in steps] == expected
    assert sae.eval().encode(_batch()).n_entries == K * 32


def test_there_is_nothing_to_anneal_from_k_on():
    for n_latents, k in ((64, 16), (8, 8), (64, 20)):
        sae = TopK(16, n_latents, k=k, k_anneal_steps=10)
        assert {sae.k_at(TrainingProgress(step)) for step in range(12)} == {k}


def test_sparsity_warms_up():
    sae = _sae(l1_coefficient=0.1, sparsity_warmup_steps=4)
    full = _sae(l1_coefficient=0.1).step(_batch()).losses["l1"]
    assert "l1" not in sae.step(_batch(), TrainingProgress(0)).losses
    for step, share in ((1, 0.25), (3, 0.75), (4, 1.0), (9, 1.0)):
        torch.testing.assert_close(sae.step(_batch(), TrainingProgress(step)).losses["l1"], share * full)


@pytest.mark.parametrize(("inference", "architecture"), [("topk", "topk"), ("threshold", "jumprelu")])
def test_export_names_the_architecture_and_loads(inference, architecture, tmp_path):
    sae = _sae(torch.float32, inference=inference)
    sae.step(_batch(dtype=torch.float32))
    save_sae(sae.eval(), tmp_path)
    config = json.loads((tmp_path / "cfg.json").read_text())
    assert config["architecture"] == architecture
    assert config.get("k") == (K if inference == "topk" else None)
    loaded, x = load_sae(tmp_path), _batch(seed=3, dtype=torch.float32)
    assert loaded.init_arguments() == sae.init_arguments()
    assert torch.equal(loaded.reconstruct(x), sae.reconstruct(x))
