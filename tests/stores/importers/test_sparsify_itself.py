"""A folder that sparsify's own package wrote, and what it encodes."""

import numpy as np
import pytest
import torch

from src.models.saes.topk import TopK
from src.stores.importers.imported import build_sae
from src.stores.importers.registry import import_sae
from src.stores.importers.source import Source
from tests.peers import run_in_peers

pytestmark = pytest.mark.slow

_SCRIPT = """
import numpy as np, torch
from pathlib import Path
from sparsify import SparseCoder, SparseCoderConfig
torch.manual_seed(0)
folder = Path(sys.argv[1])
sae = SparseCoder(8, SparseCoderConfig(expansion_factor=3, k=4))
with torch.no_grad():
    for parameter in sae.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.3)
    x = torch.randn(30, 8)
    code = sae.encode(x)
    latents = torch.zeros(30, 24).scatter(1, code.top_indices, code.top_acts)
    decoded = latents @ sae.W_dec + sae.b_dec
    np.savez(folder / "io.npz", x=x, latents=latents, decoded=decoded)
sae.save_to_disk(folder / "layers.3")
"""


def test_sparsify(tmp_path):
    run_in_peers(_SCRIPT, tmp_path, needs="sparsify")
    source, outputs = Source(tmp_path / "layers.3"), np.load(tmp_path / "io.npz")
    name, imported = import_sae(source)
    sae = build_sae(imported, source.weights)
    assert (name, type(sae), imported.arguments["k"]) == ("sparsify", TopK, 4)
    x = torch.from_numpy(outputs["x"])
    torch.testing.assert_close(sae.encode(x).to_dense(), torch.from_numpy(outputs["latents"]), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(sae.reconstruct(x), torch.from_numpy(outputs["decoded"]), rtol=1e-5, atol=1e-5)
