"""What every SAE that conf/sae names must do; a new YAML is tested without a change here."""

import copy

import hydra
import pytest
import torch

from src.config import CONF_DIR, instantiate
from src.stores.sae import load_sae, save_sae

D_IN, N_ROWS = 8, 40
PRESETS = sorted(path.stem for path in (CONF_DIR / "sae").glob("*.yaml"))


@pytest.fixture(params=PRESETS)
def sae(request):
    with hydra.initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        node = hydra.compose(f"sae/{request.param}").sae
    torch.manual_seed(0)
    return instantiate(node, d_in=D_IN)


@pytest.fixture
def activations():
    return torch.randn(N_ROWS, D_IN, generator=torch.Generator().manual_seed(1))


def _train(sae, activations, n_steps):
    optimizer = torch.optim.Adam([p for p in sae.parameters() if p.requires_grad], lr=1e-2)
    sae.initialize_from_(activations)
    losses = []
    for _ in range(n_steps):
        step = sae.step(activations)
        step.loss.backward()
        sae.constrain_gradient_()
        sae.constrain_before_step_()
        optimizer.step()
        optimizer.zero_grad()
        sae.constrain_after_step_()
        losses.append(step.loss.item())
    return losses


def test_presets_are_found():
    assert "batch_topk" in PRESETS


def test_loss_falls_on_a_repeated_batch(sae, activations):
    losses = _train(sae, activations, 30)
    assert losses[-1] < 0.5 * losses[0]


def test_step_gives_named_losses_and_latents(sae, activations):
    step = sae.step(activations)
    assert step.latents.shape == (N_ROWS, sae.n_latents)
    assert step.reconstruction.shape == (N_ROWS, D_IN)
    torch.testing.assert_close(step.loss, sum(step.losses.values()))
    assert not any(value.requires_grad for value in step.metrics.values())


def test_losses_have_the_same_names_whether_latents_are_dead_or_not(sae, activations):
    alive = sae.step(activations)
    sae.silent_for[::2] = sae.dead_after
    with torch.no_grad():
        sae.b_enc[::2] = -100.0  # they do not wake up in this batch
        sae.W_enc[::2] = 0  # nor where the bias is not used
    dead = sae.step(activations)
    assert dead.losses.keys() == alive.losses.keys()
    assert dead.metrics.keys() == alive.metrics.keys()
    for name in {"aux", "ghost"} & alive.losses.keys():
        assert alive.losses[name] == 0 < dead.losses[name]


def test_inference_changes_nothing_and_gives_the_shapes(sae, activations):
    _train(sae, activations, 3)
    sae.eval()
    before = copy.deepcopy(sae.state_dict())
    latents = sae.encode(activations)
    assert latents.shape == (N_ROWS, sae.n_latents)
    assert sae.pre_latents(activations).shape == (N_ROWS, sae.n_latents)
    assert sae(activations).shape == (N_ROWS, D_IN)
    assert sae.encode(activations[:0]).shape == (0, sae.n_latents)
    assert all(torch.equal(value, before[name]) for name, value in sae.state_dict().items())


def test_export_then_load_is_bit_exact(sae, activations, tmp_path):
    _train(sae, activations, 3)
    save_sae(sae.eval(), tmp_path)
    loaded = load_sae(tmp_path)
    assert type(loaded) is type(sae)
    assert torch.equal(loaded.reconstruct(activations), sae.reconstruct(activations))
