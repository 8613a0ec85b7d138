"""The command trains on activations that are computed meanwhile as it does on those that were written first."""

import json

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file

from src.report.doubts import SD_RATIO_KEY
from tests.command import run_command

pytestmark = pytest.mark.slow
pytest.importorskip("openslide")

SETTINGS = (
    "exp=quickstart_small",
    "dataset.standardize=false",
    "sae.input_norm=centre",
    "tile.patch_size=48",
    "backbone.image_size=48",
    "dataset.generator.n_slides=10",
    "dataset.generator.n_cases=10",
    "dataset.generator.size=768",
    "splits.n_folds=2",
    "train.epochs=3",
    "train.batch_size=64",
    "train.n_validations=3",
    "train.n_workers=2",
    "trainer=cpu",
)


def run(folder, *overrides):
    return run_command(*SETTINGS, f"paths.data={folder / 'data'}", f"paths.runs={folder}/runs", *overrides)


def path_of(folder, name):
    (path,) = (folder / "runs" / name).glob("*/fold_0/train_sae")
    return path


def test_streamed_training_ends_where_training_on_written_features_does(tmp_path):
    run(tmp_path, "task=tile")
    run(tmp_path, "task=splits")
    # Other batches than those of embed below; on the CPU weights have come out equal in every bit.
    said = run(tmp_path, "name=streamed", "train.residency=stream", "embed.batch_size=50")
    assert "train activations: stream, as asked for" in said
    data = tmp_path / "data" / "synthetic_slides_small"
    assert not list(data.glob("features_*"))
    assert not list(tmp_path.rglob("activations"))
    run(tmp_path, "task=embed")
    run(tmp_path, "name=written", "train.residency=mmap")
    streamed, written = (path_of(tmp_path, name) for name in ("streamed", "written"))

    weights, expected = (load_file(path / "export" / "sae_weights.safetensors") for path in (streamed, written))
    assert weights.keys() == expected.keys()
    for name, tensor in weights.items():
        np.testing.assert_allclose(tensor, expected[name], rtol=1e-4, atol=1e-5, err_msg=name)
    results, other = (json.loads((path / "results.json").read_text()) for path in (streamed, written))
    del other[SD_RATIO_KEY]  # of features on disk alone
    assert results == pytest.approx(other, rel=1e-4)
    assert results["val/explained_variance"] > 0.3

    fitted, packed = (pd.read_csv(path / "fitted_on.csv", dtype=str) for path in (streamed, written))
    assert fitted["digest"].isna().all()
    assert packed["digest"].notna().all()
    pd.testing.assert_frame_equal(fitted.drop(columns="digest"), packed.drop(columns="digest"))
    log = (streamed / "run.log").read_text()
    assert "Reading all train rows once for sae.input_norm=centre" in log
    assert "Reading all train rows once to calibrate" in log
    # What was trained on a stream goes on like any other.
    assert "encode test/explained_variance" in run(tmp_path, "name=streamed", "train.residency=stream", "task=encode")
