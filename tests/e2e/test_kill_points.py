"""Every task, killed at its file operations and started again, leaves what an uninterrupted run leaves."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

pytestmark = pytest.mark.slow
pytest.importorskip("openslide")

# Kills of each task, in the order of the pipeline: between the first and the last file operation, evenly spread.
TASKS = {
    "tile": 3,
    "embed": 3,
    "splits": 3,
    "train_sae": 3,
    "evaluate_sae": 3,
    "encode": 3,
    "select_neurons": 3,
    "summarize_latents": 3,
    "train_mil": 3,
    "localize": 3,
    "summarize_cv": 3,
    "report": 3,
    "train_sae_sweep": 3,
    "convert": 3,
    "metadata": 3,
    "train_probe": 3,
    "visualize": 3,
    "steer": 3,
}
MODULES = ("lightning.pytorch", "matplotlib.pyplot", "openslide", "skimage", "sklearn.linear_model", "tifffile", "timm")
MINIATURE = (
    *("exp=quickstart_small", "dataset.generator.n_slides=12", "dataset.generator.n_cases=12"),
    *("dataset.generator.size=256", "tile.patch_size=64", "tile.n_workers=2", "backbone.image_size=32"),
    *("splits.n_folds=3", "train.epochs=4", "train.n_validations=4", "train.batch_size=32", "train.block_size=2"),
    *("sae.expansion=1", "sae.k=4", "mil.max_epochs=1", "mil.methods=[max_activations,attention_latents,neuron]"),
    *("trainer=cpu", "dataset.on_bad_file=skip"),
)


def save_dictionary(folder):
    """Writes a TopK dictionary as dictionary_learning does."""
    folder.mkdir()
    d_in, n_latents = 6, 8
    weights = {"encoder.weight": torch.ones(n_latents, d_in), "encoder.bias": torch.zeros(n_latents)}
    atoms = torch.nn.functional.normalize(
        torch.randn(d_in, n_latents, generator=torch.Generator().manual_seed(0)), dim=0
    )
    weights |= {"decoder.weight": atoms, "b_dec": torch.zeros(d_in)}
    torch.save(weights | {"k": torch.tensor(2), "threshold": torch.tensor(-1.0)}, folder / "ae.pt")
    settings = {"trainer": {"dict_class": "AutoEncoderTopK", "trainer_class": "TopKTrainer"}}
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


def draw_images(folder):
    """Draws noise of two classes, one brighter."""
    rng = np.random.default_rng(0)
    for index in range(24):
        pixels = rng.integers(0, 156, (32, 32, 3)) + 100 * (index % 2)
        path = folder / ("dark", "bright")[index % 2] / f"{index:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(path)
    return folder


def save_tensor(path):
    np.save(path, np.random.default_rng(0).standard_normal((20, 4), dtype=np.float32))
    return path


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kills")
    (folder / "work").mkdir()
    overrides = [*MINIATURE, f"paths.data={folder / 'work' / 'data'}", f"paths.runs={folder / 'work' / 'runs'}"]
    images = [
        *(
            "exp=images",
            "name=images",
            "dataset.name=images",
            "dataset.positive_class=bright",
            f"dataset.dir={draw_images(folder / 'images')}",
        ),
        *("backbone=random_vit_tiny", "backbone.image_size=32", "backbone.layer=10", "backbone.tokens=all"),
        *("trainer=cpu", "splits.n_folds=3", "sae.expansion=1", "sae.k=4", "train.epochs=2", "train.batch_size=32"),
        *("probe.inputs=[activations]", "visualize.choose=class", "visualize.n_neurons=2", "visualize.n_random=2"),
        *("steer.head=probe", "steer.sizes=[1,2]", "steer.n_controls=2", "steer.n_controls_val=1", "steer.n_single=1"),
        *overrides[-2:],
    ]
    modules = [*MODULES, *(f"src.tasks.{task}" for task in TASKS)]
    base = {
        "train_sae_sweep": [*overrides, "sweep.grid=['sae.k=2,3']"],
        "convert": [*overrides, f"convert.path={save_dictionary(folder / 'dictionary')}"],
        "metadata": [
            *("exp=tensors", "dataset.name=tensors", f"dataset.tensors.train={save_tensor(folder / 'train.npy')}"),
            *overrides[-2:],
        ],
        **dict.fromkeys(("train_probe", "visualize", "steer"), images),
    }
    before = {"train_probe": ["metadata", "splits", "embed", "train_sae", "encode", "summarize_latents"]}
    plan = {
        "folder": str(folder),
        "overrides": overrides,
        "modules": modules,
        "tasks": TASKS,
        "base": base,
        "before": before,
    }
    (folder / "plan.json").write_text(json.dumps(plan))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.e2e.kill_points", str(folder / "plan.json")],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((folder / "found.json").read_text())


@pytest.mark.parametrize("task", TASKS)
def test_killed_and_started_again_ends_as_if_nothing_had_happened(found, task):
    assert len(found[task]["differing"]) == TASKS[task], "there are fewer operations than kills"
    assert {kill_at: names for kill_at, names in found[task]["differing"].items() if names} == {}


def test_there_are_as_many_kills_as_promised():
    assert sum(TASKS.values()) >= 50
