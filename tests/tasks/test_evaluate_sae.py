"""evaluate_sae on a small folder, through the runner."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch

from src import config
from src.data.fold import open_fold
from src.models.saes.core import SAECore
from src.report.page import read_page
from src.runs.execution import execute, open_rundir
from src.runs.rundir import RunDir
from src.stores.sae import load_sae
from src.tasks import evaluate_sae
from tests.synthetic import make_feature_folder

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),  # Lightning 2.6 under torch 2.15
]
config.register_resolvers()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("evaluate")
    make_feature_folder(path / "features")
    always = [
        "exp=features",
        f"dataset.dir={path / 'features'}",
        "name=small",
        f"paths.data={path / 'data'}",
        f"paths.runs={path / 'runs'}",
        f"paths.cache={path / 'cache'}",
        *("sae.k=4", "train.batch_size=256", "train.epochs=20", "dataset.positive_class=tumor", "trainer=cpu"),
        *("dataset.standardize=true", "splits.n_folds=5"),
    ]

    def run(task, *overrides):
        typed = [*always, *overrides, f"task={task}"]
        composed = config.compose(typed)
        return execute(composed, typed), open_rundir(config.resolve(composed), typed), config.resolve(composed)

    for task in ("splits", "train_sae", "encode"):
        run(task)
    return run


def rows_of(cfg, parts):
    fold = open_fold(cfg)
    return torch.from_numpy(fold.store.gather(fold.store.row_ids(fold.split.item_ids(parts))))


def test_numbers_are_those_of_the_exported_sae_on_the_test_slides(run):
    results, rundir, cfg = run("evaluate_sae")
    encoded, _, _ = run("encode")
    for name in ("l0", "fvu", "explained_variance"):
        assert results[f"test/{name}"] == pytest.approx(encoded[f"test/{name}"], rel=1e-9)
    sae = load_sae(rundir.upstream("train_sae").export_dir)
    activations = rows_of(cfg, "test")
    with torch.no_grad():
        dense, rebuilt = sae.encode(activations).to_dense(), sae.reconstruct(activations)
    cosines = torch.nn.functional.cosine_similarity(sae.standardize(activations), sae.standardize(rebuilt))
    assert results["test/cosine"] == pytest.approx(float(cosines.mean()), rel=1e-5)
    assert results["test/l1"] == pytest.approx(float(dense.sum() / len(dense)), rel=1e-5)
    assert results["test/n_tokens"] == len(activations)
    assert results["test/n_fitted_items"] == 0
    neurons = pd.read_csv(rundir.table("neuron_densities"))
    assert list(neurons) == [
        *("neuron_id", "n_fired", "density", "mean_when_active", "max"),
        *("nearest_neuron_id", "nearest_cosine"),
    ]
    assert neurons["n_fired"].tolist() == (dense > 0).sum(0).tolist()
    assert neurons["max"].to_numpy() == pytest.approx(dense.amax(0).numpy(), rel=1e-5)
    assert neurons["mean_when_active"].isna().tolist() == (dense.amax(0) == 0).tolist()
    assert results["redundancy/mean_nearest_cosine"] == pytest.approx(neurons["nearest_cosine"].abs().mean())
    l0 = pd.read_csv(rundir.table("l0_histogram"))
    assert np.repeat(l0["l0"], l0["n_rows"]).mean() == pytest.approx(results["test/l0"])
    pre_latents = pd.read_csv(rundir.table("pre_latent_histogram"))
    assert pre_latents["n_pre_latents"].sum() == dense.numel()
    assert pre_latents["n_active"].sum() == np.count_nonzero(dense.numpy())
    page = read_page(rundir.page_path)
    assert [str(figure.path) for figure in page.figures] == [
        f"plots/{name}.png" for name in ("firing_rates", "l0", "pre_latents", "redundancy")
    ]
    assert "fitted on" not in " ".join(page.paragraphs)


def test_batches_do_not_change_the_numbers(run):
    whole, _, _ = run("evaluate_sae")
    pieces, _, _ = run("evaluate_sae", "evaluation.batch_size=7")
    assert pieces == pytest.approx(whole, rel=1e-6)


def test_train_slides_may_be_asked_for_and_are_labelled(run):
    results, rundir, cfg = run("evaluate_sae", "evaluation.split=train+val")
    assert results["train+val/n_tokens"] == len(rows_of(cfg, "train+val"))
    n_train = len(rundir.upstream("train_sae").read_fitted_on())
    assert 0 < results["train+val/n_fitted_items"] == n_train < results["train+val/n_items"]
    assert f"fitted on {n_train} of these" in read_page(rundir.page_path).paragraphs[0]


def test_an_sae_fitted_elsewhere_is_evaluated_and_the_page_says_so(run, tmp_path, caplog):
    _, rundir, _ = run("train_sae")
    imported = RunDir(tmp_path / "imported")
    shutil.copytree(rundir.path, imported.path)
    imported.fitted_on_path.unlink()
    imported.write_fitted_on_unknown("it came from elsewhere")
    manifest = json.loads(imported.manifest_path.read_text())
    manifest["outputs"] = [output for output in manifest["outputs"] if output["path"] != "fitted_on.csv"]
    imported.write_json(imported.manifest_path, manifest)
    results, rundir, _ = run("evaluate_sae", f"sae_run={imported.path}")
    assert np.isnan(results["test/n_fitted_items"])
    assert "not known whether it was fitted on these slides" in read_page(rundir.page_path).paragraphs[0]
    assert "Leakage cannot be ruled out" in caplog.text


def test_a_sample_is_drawn_by_the_seed(run):
    few, rundir, _ = run("evaluate_sae", "evaluation.n_rows=50", "evaluation.n_pre_latent_rows=20")
    assert few["test/n_tokens"] == 50
    n_latents = len(pd.read_csv(rundir.table("neuron_densities")))
    assert pd.read_csv(rundir.table("pre_latent_histogram"))["n_pre_latents"].sum() == 20 * n_latents
    again, _, _ = run("evaluate_sae", "evaluation.n_rows=50", "evaluation.n_pre_latent_rows=20", "overwrite=true")
    assert again == few


def test_sae_fitted_on_evaluated_slides_is_refused_unless_they_are_train_slides(run, tmp_path):
    _, rundir, cfg = run("evaluate_sae")
    fold = open_fold(cfg)
    trained = RunDir(tmp_path / "train_sae")
    trained.path.mkdir()
    trained.write_json(trained.manifest_path, json.loads(rundir.upstream("train_sae").manifest_path.read_text()))
    trained.export_dir.symlink_to(rundir.upstream("train_sae").export_dir)
    trained.write_fitted_on(fold.fitted("train+test"))
    mine = RunDir(tmp_path / "evaluate_sae", lambda task: tmp_path / task)
    with pytest.raises(ValueError, match="in both"):
        evaluate_sae.run(cfg, mine)
    _, _, train = run("evaluate_sae", "evaluation.split=train")
    assert evaluate_sae.run(train, mine)["train/n_fitted_items"] == len(fold.split.train)


def test_out_of_gpu_memory_halves_the_batch(run, monkeypatch, caplog):
    whole, rundir, cfg = run("evaluate_sae", "evaluation.n_pre_latent_rows=20")
    encode, sizes = SAECore.encode, []

    def encode_few(sae, activations):
        if len(activations) > 40:
            raise torch.cuda.OutOfMemoryError
        sizes.append(len(activations))
        return encode(sae, activations)

    monkeypatch.setattr(SAECore, "encode", encode_few)
    halved = evaluate_sae.run(cfg, rundir)
    assert "Out of GPU memory: going on with batches of" in caplog.text
    assert max(sizes) <= 40
    assert halved == pytest.approx(whole, rel=1e-6)


def test_part_without_slides_is_refused(run, tmp_path):
    splits = run("splits")[2].dataset.splits_dir
    trained = run("train_sae")[1].path
    table = pd.read_csv(f"{splits}/splits_0.csv", dtype=str).assign(val=None)
    table.to_csv(tmp_path / "splits_0.csv", index=False)
    with pytest.raises(ValueError, match=r"Expected patches in evaluation\.split=val of fold 0, got none"):
        run("evaluate_sae", f"dataset.splits_dir={tmp_path}", "evaluation.split=val", f"sae_run='{trained}'")
