"""The command on activations that come as one tensor for many images."""

import json

import numpy as np
import pandas as pd
import pytest

from tests.command import run_command

pytestmark = pytest.mark.slow
D_IN, N_TOKENS = 12, 4


@pytest.fixture
def files(tmp_path):
    """Tokens [n_images, 4, 12]; images of class "cell" have a direction that others have not."""
    rng = np.random.default_rng(0)
    made = {}
    for part, n_images in (("train", 60), ("val", 10), ("test", 30)):
        labels = rng.integers(0, 2, n_images)
        tokens = rng.standard_normal((n_images, N_TOKENS, D_IN)).astype(np.float16)
        tokens[labels == 1, 0, 0] += 6
        np.save(tmp_path / f"{part}.npy", tokens)
        np.save(tmp_path / f"{part}_labels.npy", np.array(["empty", "cell"])[labels])
        made[part] = tmp_path / f"{part}.npy"
    return made


def run(files, *overrides, code=0):
    root = files["train"].parent
    typed = ["exp=tensors", "dataset.name=tokens", f"paths.data={root / 'data'}"]
    typed += [f"paths.runs={root / 'runs'}", "train.epochs=30", "train.batch_size=64", "sae.k=3", *overrides]
    return run_command(*typed, code=code)


def task_dir(files, task):
    (path,) = files["train"].parent.glob(f"runs/tokens/**/{task}")
    return path


def test_pipeline_on_separate_files_with_labels(files):
    given = [f"dataset.tensors.{part}={path}" for part, path in files.items()]
    given += [f"dataset.tensor_labels.{part}={path.with_name(f'{part}_labels.npy')}" for part, path in files.items()]
    run(files, *given, "dataset.positive_class=cell", "task=pipeline", "mil.methods=[max_activations,neuron]")
    skipped = json.loads((task_dir(files, "pipeline") / "skipped.json").read_text())
    assert set(skipped) == {"tile", "embed", "splits", "localize", "predict", "train_probe", "visualize", "steer"}
    assert json.loads((task_dir(files, "train_sae") / "results.json").read_text())["n_train_rows"] == 60 * N_TOKENS
    neurons = pd.read_csv(task_dir(files, "select_neurons") / "analysis" / "neurons.csv")
    assert neurons.loc[0, "auroc"] > 0.9
    index = pd.read_csv(task_dir(files, "encode") / "latents" / "all" / "index.csv")
    assert len(index) == 100
    assert set(index["n_rows"]) == {N_TOKENS}


def test_training_needs_neither_labels_nor_test_images(files):
    given = [f"dataset.tensors.{part}={files[part]}" for part in ("train", "val")]
    assert "task=metadata" in run(files, *given, code=1)
    run(files, *given, "task=metadata")
    run(files, *given)
    assert "val/explained_variance" in json.loads((task_dir(files, "train_sae") / "results.json").read_text())
    run(files, *given, "task=evaluate_sae", "evaluation.split=val")
    said = run(files, *given, "task=select_neurons", code=1)
    assert "encode" in said
