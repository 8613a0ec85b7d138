"""Every stored checkpoint of another system, imported: it encodes and decodes as that system does."""

import json

import numpy as np
import pytest
import torch

from src.models.saes.jumprelu import JumpReLU
from src.stores.importers.imported import build_sae, with_unit_atoms
from src.stores.importers.registry import FORMATS, import_sae
from src.stores.importers.source import Source
from src.stores.sae import load_sae, save_sae

pytestmark = pytest.mark.golden
TOLERANCE = {"rtol": 1e-4, "atol": 2e-5}


def _folders(root, name):
    found = sorted(path.parent for path in (root / "checkpoints").rglob(name))
    assert found, f"no {name} below {root}"
    return found


@pytest.fixture
def folders(golden_dir, request):
    """Folders of checkpoints with the file of inputs and outputs that belongs to each."""
    weights, system = request.param
    cases = []
    for folder in _folders(golden_dir, weights):
        if system not in folder.parts:
            continue
        above = next(path for path in (folder, *folder.parents) if (path / "io.npz").is_file())
        cases.append((folder, dict(np.load(above / "io.npz"))))
    assert cases
    return cases


def _import(path):
    source = Source(path)
    name, imported = import_sae(source)
    return name, imported, build_sae(imported, source.weights)


def _assert_same(sae, outputs, x="x", encode="encode", decode="decode"):
    activations = torch.from_numpy(outputs[x].reshape(-1, sae.d_in))
    latents = sae.encode(activations)
    assert np.count_nonzero(outputs[encode]) > 0
    torch.testing.assert_close(latents.to_dense(), torch.from_numpy(outputs[encode]).view(latents.shape), **TOLERANCE)
    decoded = sae.decode(latents, sae.normalize(activations)[1] if sae.normalizes_rows else None)
    torch.testing.assert_close(decoded, torch.from_numpy(outputs[decode]).view(decoded.shape), **TOLERANCE)


def _parametrize(weights, system):
    return pytest.mark.parametrize("folders", [(weights, system)], indirect=True)


@_parametrize("ae.pt", "dictionary_learning")
def test_dictionary_learning(folders):
    for folder, outputs in folders:
        name, imported, sae = _import(folder)
        assert name == "dictionary_learning"
        assert imported.facts == json.loads((folder / "config.json").read_text())
        _assert_same(sae, outputs)
        if "encode_normalized_decoder" in outputs:
            scaled = build_sae(with_unit_atoms(imported), folder)
            _assert_same(scaled, outputs, "x", "encode_normalized_decoder", "decode_normalized_decoder")
            torch.testing.assert_close(scaled.W_dec.norm(dim=1), torch.ones(sae.n_latents))


@_parametrize("sae_weights.safetensors", "saelens")
def test_saelens(folders):
    for folder, outputs in folders:
        name, _, sae = _import(folder)
        assert name == "saelens"
        _assert_same(sae, outputs)
        if "forward" in outputs:
            made = sae.reconstruct(torch.from_numpy(outputs["x"]))
            torch.testing.assert_close(made, torch.from_numpy(outputs["forward"]), **TOLERANCE)


@_parametrize("sae_best.pt", "sae1n")
def test_sae1n(folders):
    for folder, outputs in folders:
        name, _, sae = _import(folder.parent)  # the run's folder
        assert name == "sae1n"
        _assert_same(sae, outputs)
        _assert_same(_import(folder / "sae_best.pt")[2], outputs)


def test_patchsae(golden_dir):
    folder = golden_dir / "checkpoints" / "patchsae"
    outputs = dict(np.load(folder / "io.npz"))
    for path in sorted(folder.glob("*.pt")):
        name, imported, sae = _import(path)
        assert name == "patchsae"
        assert imported.facts == json.loads(str(outputs["cfg_json"]))
        _assert_same(sae, outputs, "x2", "feature_acts2", "sae_out2")
        _assert_same(sae, outputs, "x3", "feature_acts3", "sae_out3")
        assert torch.equal(sae.W_enc, torch.from_numpy(outputs["state/W_enc"]).T)


def test_mammosae(golden_dir, tmp_path):
    """The numbers of an intervention hold an SAE with its axis of components."""
    golden = np.load(golden_dir / "stats" / "mammo_intervention.npz")
    state = {key.removeprefix("sae/"): torch.from_numpy(golden[key]) for key in golden.files if key.startswith("sae/")}
    torch.save(state, tmp_path / "sparse_autoencoder_final.pt")
    name, _, sae = _import(tmp_path)
    assert name == "dncbm"
    rows = golden["feature_maps"].transpose(0, 2, 3, 1).reshape(-1, sae.d_in)
    stored = [key for key in golden.files if key.startswith("concepts_first")]
    assert stored
    for key in stored:
        latents, reconstruction = golden[key], golden[key.replace("concepts", "reconstruction")]
        _assert_same(sae, {"x": rows[: len(latents)], "encode": latents, "decode": reconstruction})


def test_each_is_recognised_by_one_format_alone(golden_dir):
    paths = sorted((golden_dir / "checkpoints" / "patchsae").glob("*.pt"))
    paths += [folder for weights in ("ae.pt", "sae_weights.safetensors") for folder in _folders(golden_dir, weights)]
    paths += _folders(golden_dir, "sae_best.pt")
    for path in paths:
        source = Source(path)
        assert sum(one.recognizes(source) for one in FORMATS.values()) == 1, path


@_parametrize("sae_weights.safetensors", "saelens")
def test_imports_survive_our_export(folders, tmp_path):
    for index, (folder, outputs) in enumerate(folders):
        save_sae(_import(folder)[2], tmp_path / str(index))
        _assert_same(load_sae(tmp_path / str(index)), outputs)
        _assert_same(_import(tmp_path / str(index))[2], outputs)  # our export is SAELens's layout


@_parametrize("ae.pt", "dictionary_learning")
def test_scaled_atoms_reconstruct_the_same(folders):
    for folder, outputs in folders:
        _, imported, sae = _import(folder)
        if imported.sae_class.__name__ in ("TopK", "BatchTopK", "MatryoshkaBatchTopK"):
            with pytest.raises(ValueError, match="unit_norm_atoms=false"):
                with_unit_atoms(imported)
            continue
        scaled = build_sae(with_unit_atoms(imported), folder)
        x = torch.from_numpy(outputs["x"])
        torch.testing.assert_close(scaled.reconstruct(x), sae.reconstruct(x), **TOLERANCE)
        lengths = sae.W_dec.norm(dim=1)
        torch.testing.assert_close(scaled.encode(x).to_dense(), sae.encode(x).to_dense() * lengths, **TOLERANCE)
        assert isinstance(scaled, JumpReLU) == isinstance(sae, JumpReLU)
