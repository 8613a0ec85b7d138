"""encode on a small folder: killed and started again, and what it takes from the start before."""

import h5py
import numpy as np
import pytest
import yaml

from src import config
from src.files import digest_file
from src.models.saes.core import SAECore
from src.runs.execution import execute, open_rundir
from src.runs.lineage import StaleRunError
from src.runs.rundir import RunDir
from src.stores.latents.store import LatentStore
from src.tasks import encode
from tests.synthetic import make_feature_folder

pytestmark = pytest.mark.slow
config.register_resolvers()
N_SLIDES = 16


class Killed(BaseException):
    pass


@pytest.fixture
def run(tmp_path, monkeypatch):
    make_feature_folder(tmp_path / "features", n_slides=N_SLIDES, n_patches=150)
    monkeypatch.setattr(encode, "_PIECE_BYTES", 1)  # the fewest rows, 64: three pieces a slide
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


def kill_at(monkeypatch, n_pieces):
    """Kills at the n-th piece that is encoded, in the middle of a slide; counts the rows that were."""
    encode_rows, seen = SAECore.encode, []

    def encode_few(sae, rows):
        if len(seen) == n_pieces:
            raise Killed
        seen.append(len(rows))
        return encode_rows(sae, rows)

    monkeypatch.setattr(SAECore, "encode", encode_few)
    return seen


def arrays(rundir):
    found = {}
    for path in sorted(rundir.latents_dir().rglob("*.h5")):
        with h5py.File(path) as file:
            found[path.name] = {name: file[name][()].tobytes() for name in file} | {"": str(dict(file.attrs))}
    assert len(found) == N_SLIDES
    return found


def outputs(rundir):
    tables = {path.name: digest_file(path) for path in (rundir.path / "analysis").iterdir()}
    return arrays(rundir), digest_file(rundir.latents_dir() / "index.csv"), tables


@pytest.mark.parametrize("n_pieces", [0, 1, 10, 3 * N_SLIDES - 1])
def test_a_killed_encode_goes_on_and_ends_with_the_same_bits(run, monkeypatch, caplog, n_pieces):
    whole, rundir = run("encode")
    expected = outputs(rundir)
    with monkeypatch.context() as patch:
        kill_at(patch, n_pieces)
        with pytest.raises(Killed):
            run("encode", "overwrite=true")
    assert not (rundir.latents_dir() / "index.csv").exists()
    (rundir.latents_dir() / "h5_files" / ".000.x1.partial.h5").touch()
    with monkeypatch.context() as patch:
        seen = kill_at(patch, 10**9)
        with caplog.at_level("INFO"):
            resumed, _ = run("encode")
    assert resumed == whole
    assert outputs(rundir) == expected
    n_kept = n_pieces // 3
    assert len(seen) == 3 * (N_SLIDES - n_kept)
    assert (f"{n_kept} of {N_SLIDES} slides had been encoded before" in caplog.text) == bool(n_kept)
    assert not list((rundir.latents_dir() / "h5_files").glob(".*"))
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
    assert len(seen) == 3 * N_SLIDES


def test_latents_that_are_damaged_are_encoded_again(run, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        kill_at(patch, 3 * N_SLIDES - 1)
        with pytest.raises(Killed):
            run("encode")
    folder = next(tmp_path.rglob("encode/latents/all/h5_files"))
    cut, emptied, changed = sorted(folder.iterdir())[:3]
    cut.write_bytes(cut.read_bytes()[:-2000])
    emptied.write_bytes(b"")
    with h5py.File(tmp_path / "features" / "h5_files" / changed.name, "a") as file:
        before = file["features"][0]
        file["features"][0] = before + 1
    (folder / "gone.h5").write_bytes(b"of a slide that is no longer in the data set")
    with pytest.raises(StaleRunError, match="activations all"):
        run("encode")
    with h5py.File(tmp_path / "features" / "h5_files" / changed.name, "a") as file:
        file["features"][0] = before
    seen = kill_at(monkeypatch, 10**9)
    _, rundir = run("encode")
    assert len(seen) == 3 * 3  # and the one that was cut short by the kill
    arrays(rundir)
    assert len(LatentStore(rundir.latents_dir()).item_ids) == N_SLIDES


def test_pieces_are_those_of_the_whole_slide(run):
    _, rundir = run("encode")
    store = LatentStore(rundir.latents_dir())
    for item_id in store.item_ids[:2]:
        latents = store.read(item_id).latents
        pieces = list(store.pieces(item_id, 64))
        assert [piece.n_rows for piece in pieces] == [64, 64, latents.n_rows - 128]
        np.testing.assert_array_equal(np.concatenate([piece.to_dense() for piece in pieces]), latents.to_dense())
