import json

import pytest
import torch
from safetensors.torch import load_file

from src.models.saes.batch_topk import BatchTopK
from src.stores.sae import load_sae, save_sae

D_IN, N_LATENTS = 6, 20


def _trained_sae(standardise=False, **options):
    torch.manual_seed(0)
    sae = BatchTopK(D_IN, N_LATENTS, k=3, **options)
    if standardise:
        sae.set_input_statistics(torch.linspace(-3, 3, D_IN), torch.linspace(0.3, 2.2, D_IN))
    optimizer = torch.optim.Adam(sae.parameters(), lr=0.01)
    for _ in range(3):
        sae.step(torch.randn(64, D_IN)).loss.backward()
        optimizer.step()
    return sae.eval()


def _jumprelu(folder, activations):
    """SAELens's inference, from its documentation: x - b_dec, linear, ReLU where above the threshold, linear."""
    weights, config = load_file(folder / "sae_weights.safetensors"), json.loads((folder / "cfg.json").read_text())
    assert weights["W_enc"].shape == (config["d_in"], config["d_sae"])
    assert weights["W_dec"].shape == (config["d_sae"], config["d_in"])
    mean, scale = 0.0, 1.0
    if config["normalize_activations"] == "layer_norm":
        mean = activations.mean(1, keepdim=True)
        scale = (activations - mean).std(1, keepdim=True) + 1e-5
    pre_latents = ((activations - mean) / scale - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"]
    latents = pre_latents.relu() * (pre_latents > weights["threshold"])
    return latents, (latents @ weights["W_dec"] + weights["b_dec"]) * scale + mean


_CASES = [
    {},
    {"standardise": True},
    {"input_norm": "z_score"},
    {"use_b_enc": False, "decoder_constraint": "before_step", "encoder_init": "kaiming"},
]


@pytest.mark.parametrize("case", _CASES)
def test_exported_weights_infer_the_same(tmp_path, case):
    sae = _trained_sae(**case)
    save_sae(sae, tmp_path, {})
    activations = torch.randn(50, D_IN) * 2 + 1
    latents, reconstruction = _jumprelu(tmp_path, activations)
    ours = sae.encode(activations)
    assert ours.n_entries > 50
    torch.testing.assert_close(ours.to_dense(), latents, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sae.reconstruct(activations).detach(), reconstruction, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", _CASES)
def test_load_gives_the_sae_back_bit_for_bit(tmp_path, case):
    sae = _trained_sae(**case)
    save_sae(sae, tmp_path / "export", {"fold": 3})
    loaded = load_sae(tmp_path / "export")
    assert type(loaded) is BatchTopK
    assert not loaded.training
    assert loaded.init_arguments() == sae.init_arguments()
    assert all(torch.equal(value, sae.state_dict()[name]) for name, value in loaded.state_dict().items())
    activations = torch.randn(50, D_IN)
    assert torch.equal(loaded.encode(activations).to_dense(), sae.encode(activations).to_dense())
    assert torch.equal(loaded.reconstruct(activations), sae.reconstruct(activations))


def test_metadata_is_kept(tmp_path):
    save_sae(_trained_sae(), tmp_path, {"fold": 3, "dataset": "toy"})
    metadata = json.loads((tmp_path / "cfg.json").read_text())["metadata"]
    assert (metadata["fold"], metadata["dataset"]) == (3, "toy")
    assert metadata["loupe"]["_target_"] == "src.models.saes.batch_topk.BatchTopK"


def test_a_missing_export_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"cfg\.json in .*task=train_sae"):
        load_sae(tmp_path)


@pytest.mark.parametrize("target", [None, "os.system", "src.models.saesx.Evil", "src.models.saes.core.math"])
def test_only_our_classes_are_loaded(tmp_path, target):
    save_sae(_trained_sae(), tmp_path)
    config = json.loads((tmp_path / "cfg.json").read_text())
    config["metadata"]["loupe"]["_target_"] = target
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="Expected a _target_ that names a SAE"):
        load_sae(tmp_path)


def test_a_state_of_another_size_is_named(tmp_path):
    save_sae(_trained_sae(), tmp_path)
    config = json.loads((tmp_path / "cfg.json").read_text())
    config["metadata"]["loupe"]["n_latents"] = 21
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"loupe_state\.safetensors to fit cfg\.json"):
        load_sae(tmp_path)
