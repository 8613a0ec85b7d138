import pytest
import torch

from src.models.saes.batch_topk import BatchTopK
from src.models.saes.matryoshka_batch_topk import MatryoshkaBatchTopK
from src.stores.sae import load_sae, save_sae

D_IN, N_LATENTS, K = 6, 20, 3
FRACTIONS = [0.25, 0.25, 0.5]


def _sae(dtype=torch.float64, **options):
    torch.manual_seed(0)
    sae = MatryoshkaBatchTopK(D_IN, N_LATENTS, k=K, **{"group_fractions": FRACTIONS, **options}).to(dtype)
    with torch.no_grad():
        sae.b_enc.normal_(0, 0.3)
        sae.b_dec.normal_(0, 0.3)
    return sae


def _batch(n_rows=32, seed=0):
    return torch.randn(n_rows, D_IN, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _by_loop(sae, x):
    """The definition, dense: the mean over prefixes of their errors, each times its weight."""
    pre_latents = torch.relu((x - sae.b_dec) @ sae.W_enc.T + sae.b_enc)
    smallest = pre_latents.detach().flatten().topk(K * len(x)).values[-1]
    latents = pre_latents * (pre_latents >= smallest)
    prefixes, loss, stop = [], 0.0, 0
    for size, weight in zip(sae.group_sizes, sae.group_weights, strict=True):
        stop += size
        prefixes.append(latents[:, :stop] @ sae.W_dec[:stop] + sae.b_dec)
        loss = loss + weight * (prefixes[-1] - x).square().mean() / len(sae.group_sizes)
    return prefixes, loss


@pytest.mark.parametrize("n_rows", [1, 32])
@pytest.mark.parametrize(
    "options",
    [{}, {"group_weights": [0.5, 0.0, 3.0]}, {"group_fractions": [1.0]}, {"group_fractions": [0.05, 0.9, 0.05]}],
)
def test_prefixes_losses_and_gradients_equal_those_of_a_plain_loop(options, n_rows):
    sae, x = _sae(**options), _batch(n_rows)
    prefixes, loss = _by_loop(sae, x)
    step = sae.step(x)
    torch.testing.assert_close(sae.reconstructions(step.latents), prefixes)
    torch.testing.assert_close(step.reconstruction, prefixes[-1])
    torch.testing.assert_close(step.loss, loss)
    expected = torch.autograd.grad(loss, list(sae.parameters()))
    for ours, theirs in zip(torch.autograd.grad(step.loss, list(sae.parameters())), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_one_group_is_batch_topk():
    torch.manual_seed(0)
    plain = BatchTopK(D_IN, N_LATENTS, k=K).double()
    sae = MatryoshkaBatchTopK(D_IN, N_LATENTS, k=K, group_fractions=[1.0]).double()
    sae.load_state_dict(plain.state_dict())
    torch.testing.assert_close(sae.step(_batch()).loss, plain.step(_batch()).loss)


def test_image_blocks_are_their_rows():
    sae, x = _sae(error_scale="input_norm", class_token_weight=1.0), _batch()
    as_rows, as_blocks = sae.step(x), sae.step(x.view(8, 4, D_IN))
    torch.testing.assert_close(as_blocks.loss, as_rows.loss)
    weighted = _sae(error_scale="input_norm", class_token_weight=3.0)
    assert weighted.step(x.view(8, 4, D_IN)).loss > as_blocks.loss


@pytest.mark.slow
def test_early_groups_learn_to_stand_alone():
    torch.manual_seed(0)
    x = _batch(256) * torch.linspace(2, 0.1, D_IN)
    shares = {}
    for name, weights in (("nested", None), ("last only", [0.0, 0.0, 3.0])):
        sae = _sae(group_weights=weights)
        optimizer = torch.optim.Adam(sae.parameters(), lr=0.02)
        for _ in range(100):
            sae.step(x).loss.backward()
            sae.constrain_gradient_()
            optimizer.step()
            optimizer.zero_grad()
            sae.constrain_after_step_()
        first = sae.reconstructions(sae.step(x).latents)[0]
        shares[name] = float((first.detach() - x).square().mean() / x.var())
    assert shares["nested"] < 0.8 * shares["last only"]


def test_auxk_is_about_the_whole_reconstruction():
    sae, x = _sae(dead_after=1, aux_coefficient=0.5, k_aux=100), _batch()
    with torch.no_grad():
        sae.b_enc[2:9] = -3.0
    step = sae.step(x)
    dead = (step.latents.to_dense() == 0).all(0)
    residual = x - sae.reconstructions(step.latents)[-1]
    rebuilt = torch.relu((x - sae.b_dec) @ sae.W_enc[dead].T + sae.b_enc[dead]) @ sae.W_dec[dead]
    torch.testing.assert_close(step.losses["aux"], 0.5 * (rebuilt - residual).square().mean())


def test_group_sizes_are_cut_down_and_the_last_takes_the_rest():
    assert MatryoshkaBatchTopK(4, 19, k=1).group_sizes == [1, 2, 4, 12]
    assert MatryoshkaBatchTopK(4, 10, k=1, group_fractions=[0.29, 0.71]).group_sizes == [2, 8]


def test_export_then_load_keeps_the_groups(tmp_path):
    sae = _sae(torch.float32, group_weights=[1, 2, 3]).eval()
    save_sae(sae, tmp_path)
    loaded = load_sae(tmp_path)
    assert loaded.init_arguments() == sae.init_arguments()
    assert isinstance(loaded, MatryoshkaBatchTopK)
    assert loaded.group_sizes == [5, 5, 10]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group_fractions": [0.5, 0.4]}, r"sae.group_fractions that sum to 1, got \[0.5, 0.4\]"),
        ({"group_fractions": []}, r"sae.group_fractions that sum to 1, got \[\]"),
        ({"group_fractions": [0.01, 0.99]}, r"to hold a neuron, got sizes \[0, 20\]"),
        ({"group_fractions": [1.5, -0.5]}, r"to hold a neuron, got sizes \[30, -10\]"),
        ({"group_weights": [1.0]}, r"one of sae.group_weights for each of 3 groups, got \[1.0\]"),
    ],
)
def test_refuses_groups_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        _sae(**options)
