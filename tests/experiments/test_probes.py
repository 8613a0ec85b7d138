import numpy as np
import pandas as pd
import pytest

from experiments.probes.crc9 import write_tensors
from src import config
from src.runs.execution import execute, open_rundir

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # Lightning 2.6 under torch 2.15
config.register_resolvers()


def test_tiles_of_train_and_test_do_not_validate(tmp_path):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(6, 3)).astype(np.float32)
    parts = {"train_X": rows[:2], "test_X": rows[2:3], "csv_X": rows[[4, 1, 5, 2]]}
    labels = {"train_y": np.array(["a", "b"]), "test_y": np.array(["a"]), "csv_y": np.array(["a", "b", "b", "a"])}
    np.savez(tmp_path / "tiles.npz", **parts, **labels)
    assert write_tensors(tmp_path / "tiles.npz", tmp_path / "out") == {"train": 2, "test": 1, "val": 2}
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "val.npy"), rows[[4, 5]])
    assert np.load(tmp_path / "out" / "val_labels.npy").tolist() == ["a", "b"]


@pytest.mark.slow
@pytest.mark.realdata
def test_a_probe_tells_nine_tissues_apart(data_dir, tmp_path):
    write_tensors(data_dir / "embeddings" / "histolearn_uni_crc9.npz", tmp_path / "tiles")
    parts = ("train", "val", "test")
    always = ["exp=tensors", "dataset.name=crc9", "trainer=cpu", f"paths.data={tmp_path}/data"]
    always += [f"paths.runs={tmp_path}/runs", f"paths.cache={tmp_path}/cache"]
    always += [f"dataset.tensors.{part}={tmp_path}/tiles/{part}.npy" for part in parts]
    always += [f"dataset.tensor_labels.{part}={tmp_path}/tiles/{part}_labels.npy" for part in parts]
    always += ["sae=topk", "sae.k=32", "sae.expansion=1", "train.epochs=300", "train.batch_size=90"]
    for task in ("metadata", "train_sae", "train_probe"):
        typed = [*always, f"task={task}"]
        execute(config.compose(typed), typed)
    metrics = pd.read_csv(open_rundir(config.resolve(config.compose(typed)), typed).table("metrics"))
    right = metrics[metrics["split"] == "test"].set_index("input")["n_right"]
    assert right["activations"] >= 42
    assert right["latents"] >= 36  # the SAE saw 90 rows: far above the 5 of chance, and below activations
