"""The command with two devices ends where it ends with one."""

import json

import pytest
from safetensors.numpy import load_file

from tests.e2e.test_features import run
from tests.synthetic import make_feature_folder

pytestmark = pytest.mark.slow
# Few steps: sums in another order differ in the last bit of float32, which selecting latents enlarges step by step.
FEW = ("train.epochs=2", "train.n_validations=2", "trainer.accelerator=cpu")


def test_two_devices_train_the_sae_that_one_trains(tmp_path):
    workplace = make_feature_folder(tmp_path / "features").parent
    run(workplace, "task=splits")
    results, weights = [], []
    for n_devices in (1, 2):
        runs = f"paths.runs={workplace / f'runs_{n_devices}'}"
        run(workplace, runs, f"trainer.devices={n_devices}", *FEW)
        (path,) = workplace.glob(f"runs_{n_devices}/**/train_sae")
        results.append(json.loads((path / "results.json").read_text()))
        weights.append(load_file(path / "export" / "sae_weights.safetensors"))
        assert (path / "run.log").read_text().count("Residency of") == 1
        assert json.loads((path / "manifest.json").read_text())["status"] == "completed"
    assert results[1] == pytest.approx(results[0], rel=1e-4)
    for name, values in weights[0].items():
        assert weights[1][name] == pytest.approx(values, rel=1e-4, abs=1e-5), name
    assert "is finished" in run(workplace, runs, "trainer.devices=2", *FEW)
