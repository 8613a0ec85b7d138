"""encode on a small folder: killed and started again, what it takes from before, and where it computes."""

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from src import config
from src.data.fold import open_fold
from src.files import digest_file
from src.models.saes.core import SAECore
from src.runs.execution import execute, open_rundir
from src.runs.lineage import StaleRunError
from src.runs.rundir import RunDir
from src.stores.latents import writer as writers
from src.stores.latents.encoded import EncodedLatents
from src.stores.latents.index import LatentItem
from src.stores.latents.store import LatentStore
from src.stores.sae import load_sae
from src.tasks import encode, upstream_sae
from tests.synthetic import make_feature_folder

pytestmark = pytest.mark.slow
config.register_resolvers()
N_SLIDES, N_PATCHES = 16, 150


class Killed(BaseException):
    pass


@pytest.fixture
def run(tmp_path, monkeypatch):
    make_feature_folder(tmp_path / "features", n_slides=N_SLIDES, n_patches=N_PATCHES)
    monkeypatch.setattr(encode, "_BATCH_BYTES", 1)  # the fewest rows, 64
    monkeypatch.setattr(writers, "SHARD_BYTES", 10_000)  # about four batches
    always = [
        *("exp=features", f"dataset.dir={tmp_path / 'features'}", "dataset.positive_class=tumor", "trainer=cpu"),
        *(f"paths.{name}={tmp_path / name}" for name in ("data", "runs", "cache")),
        *("sae.k=4", "train.batch_size=256", "train.epochs=2", "splits.n_folds=2", "splits.val_share=0.25"),
    ]

    def run(task, *overrides, name="small"):
        typed = [*always, f"name={name}", *overrides, f"task={task}"]
        composed = config.compose(typed)
        return execute(composed, typed), open_rundir(config.resolve(composed), typed)

    for task in ("splits", "train_sae"):
        run(task)
    return run


def kill_at(monkeypatch, n_batches):
    """Kills at the n-th batch that is encoded; keeps the batches."""
    encode_rows, seen = SAECore.encode, []

    def encode_few(sae, rows):
        if len(seen) == n_batches:
            raise Killed
        seen.append(rows)
        return encode_rows(sae, rows)

    monkeypatch.setattr(SAECore, "encode", encode_few)
    return seen


def outputs(rundir):
    return {
        path.name: digest_file(path)
        for folder in (rundir.latents_dir(), rundir.path / "analysis")
        for path in folder.iterdir()
    }


@pytest.mark.parametrize("n_batches", [0, 1, 10, -1])
def test_a_killed_encode_goes_on_and_ends_with_the_same_bits(run, monkeypatch, caplog, n_batches):
    with monkeypatch.context() as patch:
        seen = kill_at(patch, 10**9)
        whole, rundir = run("encode")
        n_all = len(seen)
    expected = outputs(rundir)
    n_batches %= n_all
    with monkeypatch.context() as patch:
        kill_at(patch, n_batches)
        with pytest.raises(Killed):
            run("encode", "overwrite=true")
    assert not (rundir.latents_dir() / "index.json").exists()
    n_shards = len(list(rundir.latents_dir().glob("shard_*")))
    assert n_shards >= (n_batches - 4) // 4
    (rundir.latents_dir() / ".shard.x1.partial.safetensors").touch()
    with monkeypatch.context() as patch:
        seen = kill_at(patch, 10**9)
        with caplog.at_level("INFO"):
            resumed, _ = run("encode")
    assert resumed == whole
    assert outputs(rundir) == expected
    assert len(seen) <= n_all - max(0, n_batches - 5)
    assert ("rows had been encoded before" in caplog.text) == bool(n_shards)
    assert not list(rundir.latents_dir().glob(".*"))
    assert not [output for output in rundir.read_manifest()["outputs"] if "partial" in output["path"]]


def test_latents_of_another_sae_are_not_kept(run, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        kill_at(patch, 20)
        with pytest.raises(Killed):
            run("encode")
    trained = run("train_sae")[1]
    # Another SAE of the same shape, as a training that was run again leaves.
    other = run("train_sae", "seed=1", name="other")[1]
    for path in trained.export_dir.iterdir():
        path.write_bytes((other.export_dir / path.name).read_bytes())
    with pytest.raises(StaleRunError, match="export"):
        run("encode")
    # The store itself does not take them either.
    seen = kill_at(monkeypatch, 10**9)
    (typed,) = tmp_path.rglob("encode/.hydra/overrides.yaml")
    path = typed.parent.parent
    cfg = config.resolve(config.compose(yaml.safe_load(typed.read_text())))
    encode.run(cfg, RunDir(path, lambda task: path.parent / task))
    assert sum(map(len, seen)) == sum(item.n_rows for item in LatentStore(path / "latents" / "all").items.values())


def test_the_device_and_the_precision_are_the_trainers(run, monkeypatch):
    """Rows of several slides go through the SAE together, where and as the trainer says."""
    monkeypatch.setattr(encode, "_BATCH_BYTES", 1 << 30)
    run("train_sae", "trainer.precision=bf16-mixed")
    encode_rows, seen = SAECore.encode, []

    def spy(sae, rows):
        seen.append((sae.W_enc.device, rows.device, torch.is_autocast_enabled("cpu"), len(rows)))
        return encode_rows(sae, rows)

    asked = []

    def choose(accelerator, devices):
        asked.append((accelerator, devices))
        return torch.device("cpu", 0)

    monkeypatch.setattr(SAECore, "encode", spy)
    monkeypatch.setattr(upstream_sae, "choose_device", choose)
    run("encode", "trainer.precision=bf16-mixed")
    assert asked == [("cpu", 1)]
    assert all(sae == rows and is_autocast for sae, rows, is_autocast, _ in seen)
    assert max(n_rows for *_, n_rows in seen) > N_PATCHES


def test_latents_are_those_of_the_sae_by_item_and_by_neuron(run):
    _, rundir = run("encode")
    store = LatentStore(rundir.latents_dir())
    assert len(store.items) == N_SLIDES
    cfg = config.resolve(config.compose(yaml.safe_load((rundir.path / ".hydra" / "overrides.yaml").read_text())))
    fold = open_fold(cfg)
    sae = load_sae(rundir.upstream("train_sae").export_dir)
    ranges = zip(fold.items, fold.store.row_ranges(fold.items), strict=True)
    items = [LatentItem(item_id, start, stop - start) for item_id, (start, stop) in ranges]
    encoded = EncodedLatents(sae, items, fold.store.gather, fold.store.coords)
    for item_id in list(store.items)[::5]:
        torch.testing.assert_close(store.rows(item_id).to_dense(), encoded.rows(item_id).to_dense())
        np.testing.assert_array_equal(store.coords(item_id), fold.store.coords(item_id))
        assert store.items[item_id].digest == fold.store.digest(item_id)
    density = pd.read_csv(rundir.table("density"))
    for neuron_id in density.sort_values("density")["neuron_id"].tolist()[-3:]:
        assert len(store.places(neuron_id).rows) == density["n_active"][neuron_id]
        np.testing.assert_allclose(store.places(neuron_id, 9).values, encoded.places(neuron_id, 9).values, rtol=1e-5)


def test_without_by_neuron_and_with_features_for_others(run):
    _, rundir = run("encode", "encode.by_neuron=false", "encode.dense_formats=[h5,pt]")
    assert not list(rundir.latents_dir().glob("by_neuron*"))
    store = LatentStore(rundir.latents_dir())
    item_id = next(iter(store.items))
    features = torch.load(rundir.path / "latents" / "dense" / "pt_files" / f"{item_id}.pt", weights_only=True)
    torch.testing.assert_close(features, store.rows(item_id).to_dense(), rtol=0, atol=0)
