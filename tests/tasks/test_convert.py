import json
import logging
import os

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from src import config
from src.report.page import read_page
from src.runs.execution import execute, open_rundir
from src.stores.importers.settings import plain
from src.stores.latents.store import LatentStore
from src.stores.sae import load_sae
from tests.stores.importers.foreign import D_IN, N_LATENTS, K, decoded, keep_top_k, linear, pre_latents, weights
from tests.synthetic import make_feature_folder

config.register_resolvers()


@pytest.fixture
def checkpoint(tmp_path):
    """A TopK dictionary of dictionary_learning, and its weights."""
    w = weights()
    folder = tmp_path / "dictionary"
    folder.mkdir()
    torch.save(linear(w, "b_dec", k=torch.tensor(K), threshold=torch.tensor(-1.0)), folder / "ae.pt")
    settings = {"trainer": {"dict_class": "AutoEncoderTopK", "trainer_class": "TopKTrainer", "lr": 1e-3}}
    (folder / "config.json").write_text(json.dumps(settings))
    return folder, w


@pytest.fixture
def convert(tmp_path):
    """Runs convert and returns its run directory and results."""

    def convert(*overrides):
        typed = ["exp=features", "name=toy", f"paths.runs={tmp_path / 'runs'}", "task=convert", *overrides]
        composed = config.compose(typed)
        rundir = open_rundir(config.resolve(composed), typed)
        return rundir, execute(composed, typed)

    return convert


def _fvu(w):
    latents = keep_top_k(pre_latents(w, w["x"]))
    errors = (w["x"] - decoded(w, latents)).square().sum()
    return float(errors / (w["x"] - w["x"].mean(0)).square().sum()), float((latents > 0).sum(1).float().mean())


def test_convert_writes_an_export(checkpoint, convert):
    folder, w = checkpoint
    rundir, results = convert(f"convert.path={folder}")
    assert results == {"d_in": D_IN, "n_latents": N_LATENTS}
    sae = load_sae(rundir.export_dir)
    latents = sae.encode(w["x"]).to_dense()
    torch.testing.assert_close(latents, keep_top_k(pre_latents(w, w["x"])), rtol=1e-5, atol=1e-5)
    metadata = json.loads((rundir.export_dir / "cfg.json").read_text())["metadata"]["imported"]
    assert metadata["format"] == "dictionary_learning"
    assert metadata["settings"]["trainer"]["lr"] == 1e-3
    assert {one.path for one in rundir.recorded()} == {str(folder / "ae.pt"), str(folder / "config.json")}
    assert all(len(one.digest) == 32 for one in rundir.recorded())
    page = read_page(rundir.page_path)
    assert "dictionary_learning" in page.paragraphs[0]
    assert "k=3" in page.paragraphs[0]
    assert not rundir.fitted_on_path.exists()


@pytest.mark.parametrize("suffix", ["npy", "pt"])
def test_convert_measures(checkpoint, convert, tmp_path, suffix):
    folder, w = checkpoint
    path = tmp_path / f"x.{suffix}"
    if suffix == "npy":
        np.save(path, w["x"].numpy())
    else:
        torch.save(w["x"], path)
    rundir, results = convert(f"convert.path={folder}", f"convert.activations={path}")
    fvu, l0 = _fvu(w)
    assert results["fvu"] == pytest.approx(fvu, rel=1e-5)
    assert results["explained_variance"] == pytest.approx(1 - fvu, rel=1e-5)
    assert results["l0"] == pytest.approx(l0)
    assert str(path) in {one.path for one in rundir.recorded()}


def test_recorded_fvu_is_verified(checkpoint, convert, tmp_path, caplog):
    folder, w = checkpoint
    fvu, _ = _fvu(w)
    np.save(tmp_path / "x.npy", w["x"].numpy())
    given = (f"convert.path={folder}", f"convert.activations={tmp_path / 'x.npy'}")
    (folder / "eval_results.json").write_text(json.dumps({"frac_variance_explained": 1 - fvu - 0.015}))
    rundir, _ = convert(*given)
    assert "tolerance 0.02" in read_page(rundir.page_path).paragraphs[-1]
    with pytest.raises(ValueError, match=r"comes with .*ae\.pt, within convert\.fvu_tolerance=0\.01, got"):
        convert(*given, "convert.fvu_tolerance=0.01")
    with caplog.at_level(logging.WARNING):
        rundir, _ = convert(f"convert.path={folder}")
    assert "convert.activations=<file> checks it" in caplog.text
    assert "was not checked" in read_page(rundir.page_path).paragraphs[-1]


def test_unit_norm_atoms(convert, tmp_path):
    w = weights()
    state = {name: w[name].contiguous() for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    save_file(state, tmp_path / "sae_weights.safetensors")
    (tmp_path / "cfg.json").write_text(json.dumps({"architecture": "standard", "d_in": D_IN, "d_sae": N_LATENTS}))
    plain, _ = convert(f"convert.path={tmp_path}")
    scaled, _ = convert(f"convert.path={tmp_path}", "convert.unit_norm_atoms=true")
    assert plain.path != scaled.path
    ours = load_sae(scaled.export_dir)
    torch.testing.assert_close(ours.W_dec.norm(dim=1), torch.ones(N_LATENTS))
    expected = load_sae(plain.export_dir).reconstruct(w["x"])
    torch.testing.assert_close(ours.reconstruct(w["x"]), expected, rtol=1e-4, atol=1e-4)
    assert "unit norm" in read_page(scaled.page_path).paragraphs[1]
    unscaled = load_file(plain.export_dir / "sae_weights.safetensors")
    assert all(torch.equal(unscaled[name], value) for name, value in state.items())


@pytest.mark.parametrize(
    ("content", "found"),
    [(np.ones((4, D_IN + 1)), rf"\(4, {D_IN + 1}\)"), (np.ones(D_IN), rf"\({D_IN},\)"), (np.ones((0, D_IN)), r"\(0")],
)
def test_activations_that_do_not_fit(checkpoint, convert, tmp_path, content, found):
    np.save(tmp_path / "x.npy", content)
    given = (f"convert.path={checkpoint[0]}", f"convert.activations={tmp_path / 'x.npy'}")
    with pytest.raises(ValueError, match=rf"Expected activations \[n_rows, {D_IN}\] in .*x\.npy, got {found}"):
        convert(*given)
    (tmp_path / "x.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"Expected activations .* at .*x\.npy"):
        convert(*given)


def test_nothing_to_convert(convert, tmp_path):
    with pytest.raises(ValueError, match=r"give convert\.path=<file or folder>"):
        convert()
    with pytest.raises(FileNotFoundError, match="found nothing"):
        convert(f"convert.path={tmp_path / 'no'}")


@pytest.mark.slow
def test_an_imported_sae_encodes(checkpoint, convert, tmp_path, caplog):
    folder, _ = checkpoint
    rundir, _ = convert(f"convert.path={folder}")
    data = make_feature_folder(tmp_path / "features", n_slides=24, n_patches=6, d_in=D_IN)
    common = ["exp=features", "name=toy", "splits.n_folds=3", f"dataset.dir={data}", "dataset.positive_class=tumor"]
    common += [f"paths.data={tmp_path / 'data'}", f"paths.runs={tmp_path / 'runs'}"]
    for task, extra in (("splits", []), ("encode", [f"sae_run={rundir.path}"])):
        typed = [*common, f"task={task}", *extra]
        composed = config.compose(typed)
        with caplog.at_level(logging.WARNING):
            results = execute(composed, typed)
    encoded = open_rundir(config.resolve(composed), typed)
    assert results["n_items"] == 24
    assert 0 < results["test/l0"] <= K
    assert f"Leakage cannot be ruled out for {rundir.path}: the SAE was imported from" in caplog.text
    assert LatentStore(encoded.latents_dir()).n_latents == N_LATENTS
    assert "train_sae" in encoded.read_manifest()["upstream"]


def _nested(levels):
    return "{" + '"a": {' * levels + "}" * levels + "}"


@pytest.mark.parametrize("levels", [40, 600, 100_000])
@pytest.mark.parametrize("name", ["config.json", "ae.pt"])
def test_settings_without_end_are_refused(checkpoint, convert, levels, name):
    folder, _ = checkpoint
    (folder / name).write_text(_nested(levels) + "\n")  # as ae.pt, it begins as saev's files do, with a header
    with pytest.raises(ValueError, match=rf"Expected .*JSON .*{name}.* of at most 32 levels, got more") as caught:
        convert(f"convert.path={folder}")
    assert len(str(caught.value).splitlines()) == 1


def test_pickled_settings_that_hold_themselves_are_refused():
    loop = {}
    loop["a"] = [loop]
    with pytest.raises(ValueError, match="settings of at most 32 levels"):
        plain(loop)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.symlink_to(path), "a link that leads nowhere"),
        (lambda path: os.mkfifo(path), "what is neither"),
        (lambda path: None, "nothing"),
    ],
)
def test_what_is_no_checkpoint_is_said_in_a_sentence(tmp_path, convert, make, message):
    make(tmp_path / "there")
    with pytest.raises(FileNotFoundError, match=rf"file or folder at .*there, found {message}\."):
        convert(f"convert.path={tmp_path / 'there'}")


@pytest.mark.parametrize("name", ["ae.pt", "config.json"])
@pytest.mark.parametrize("make", [lambda path: path.mkdir(), lambda path: path.symlink_to(path), os.mkfifo])
def test_a_file_of_a_checkpoint_that_is_none(checkpoint, convert, name, make):
    folder, _ = checkpoint
    (folder / name).unlink()
    make(folder / name)
    with pytest.raises((FileNotFoundError, ValueError), match=rf"Expected .*{folder.name}") as caught:
        convert(f"convert.path={folder}")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("make", [lambda path: path.mkdir(), lambda path: path.symlink_to(path), os.mkfifo])
def test_activations_that_are_no_file(checkpoint, convert, tmp_path, make):
    folder, _ = checkpoint
    make(tmp_path / "x.npy")
    with pytest.raises(FileNotFoundError, match=r"Expected activations .* at .*x\.npy"):
        convert(f"convert.path={folder}", f"convert.activations={tmp_path / 'x.npy'}")
