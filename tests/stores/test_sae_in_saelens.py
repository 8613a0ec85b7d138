"""SAELens itself loads what we export, and encodes and decodes as we do."""

import numpy as np
import pytest
import torch

from src.models.saes.archetypal import Archetypal
from src.models.saes.batch_topk import BatchTopK
from src.models.saes.gated import Gated
from src.models.saes.jumprelu import JumpReLU
from src.models.saes.matryoshka_batch_topk import MatryoshkaBatchTopK
from src.models.saes.p_anneal import PAnneal
from src.models.saes.relu_l1 import ReLUL1
from src.models.saes.topk import TopK
from src.stores.importers.imported import build_sae
from src.stores.importers.registry import import_sae
from src.stores.importers.source import Source
from src.stores.sae import save_sae
from tests.peers import run_in_peers

pytestmark = pytest.mark.slow
D_IN, N_LATENTS = 8, 24

_SCRIPT = """
import numpy as np, torch
from pathlib import Path
from sae_lens import SAE
for folder in sorted(Path(sys.argv[1]).iterdir()):
    sae = SAE.load_from_disk(str(folder))
    with torch.no_grad():
        latents = sae.encode(torch.from_numpy(np.load(folder / "x.npy")))
        np.savez(folder / "theirs.npz", latents=latents.numpy(), decoded=sae.decode(latents).numpy(),
                 architecture=sae.cfg.architecture())
"""

_CASES = {
    "relu": (ReLUL1, "standard", {}),
    "relu_no_input_bias": (ReLUL1, "standard", {"apply_b_dec_to_input": False}),
    "p_anneal": (PAnneal, "standard", {}),
    "topk": (TopK, "topk", {"k": 3}),
    "topk_threshold": (TopK, "jumprelu", {"k": 3, "inference": "threshold"}),
    "batch_topk": (BatchTopK, "jumprelu", {"k": 3}),
    "batch_topk_sae1n": (BatchTopK, "jumprelu", {"k": 3, "use_b_enc": False, "input_norm": "z_score"}),
    "matryoshka": (MatryoshkaBatchTopK, "jumprelu", {"k": 3}),
    "archetypal": (Archetypal, "jumprelu", {"k": 3}),
    "jumprelu": (JumpReLU, "jumprelu", {"threshold_init": 0.3}),
    "jumprelu_log": (JumpReLU, "jumprelu", {"threshold_init": 0.3, "threshold_form": "log"}),
    "gated": (Gated, "gated", {}),
    "gated_no_input_bias": (Gated, "gated", {"apply_b_dec_to_input": False}),
    "layer_norm": (TopK, "topk", {"k": 3, "input_norm": "layer_norm"}),
    "z_score": (Gated, "gated", {"input_norm": "z_score"}),
    "centre": (JumpReLU, "jumprelu", {"threshold_init": 0.3, "input_norm": "centre"}),
    "global_scale": (ReLUL1, "standard", {"input_norm": "global_scale"}),
}


def _sae(sae_class, options, is_standardised, x):
    """An SAE with every parameter away from where it starts."""
    sae = sae_class(D_IN, N_LATENTS, **options)
    sae.initialize_from_(x)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
        if sae.threshold_l0 is not None:  # it has one threshold, moved in training
            sae.threshold.fill_(0.35)
    if sae.input_norm in ("centre", "global_scale"):
        sae.fit_input_norm_([x])
    if is_standardised and sae.input_norm == "none":
        sae.set_input_statistics(torch.linspace(-2, 2, D_IN), torch.linspace(0.4, 2, D_IN))
    return sae.eval()


def _decoded_as_saelens(sae, x):
    """Our reconstructions; of rows that were normalised, with their deviation alone put back, as SAELens does."""
    reconstruction = sae.reconstruct(x).detach()
    if not sae.normalizes_rows:
        return reconstruction
    mean, scale = sae.normalize(x)[1]
    deviation = x.std(1, keepdim=True, correction=1 if sae.input_norm == "z_score" else 0)
    return (reconstruction - mean) * deviation / scale + mean


def test_saelens_encodes_what_we_export(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(40, D_IN) * 2 + 1
    made = {}
    for name, (sae_class, architecture, options) in _CASES.items():
        for is_standardised in (False, True):
            folder = tmp_path / f"{name}_{is_standardised}"
            made[folder] = (_sae(sae_class, options, is_standardised, x), architecture)
            save_sae(made[folder][0], folder)
            np.save(folder / "x.npy", x.numpy())
    run_in_peers(_SCRIPT, tmp_path, needs="sae_lens")
    for folder, (sae, architecture) in made.items():
        theirs = np.load(folder / "theirs.npz")
        assert str(theirs["architecture"]) == architecture
        ours = sae.encode(x)
        assert 0 < ours.n_entries < ours.to_dense().numel(), folder.name
        torch.testing.assert_close(
            ours.to_dense(),
            torch.from_numpy(theirs["latents"]),
            rtol=1e-5,
            atol=1e-5,
            msg=lambda said, folder=folder: f"{folder.name}: {said}",
        )
        torch.testing.assert_close(
            _decoded_as_saelens(sae, x),
            torch.from_numpy(theirs["decoded"]),
            rtol=1e-5,
            atol=1e-5,
            msg=lambda said, folder=folder: f"{folder.name}: {said}",
        )
        source = Source(folder)
        again = build_sae(import_sae(source)[1], source.weights)
        torch.testing.assert_close(again.encode(x).to_dense(), ours.to_dense(), rtol=1e-5, atol=1e-5)
