"""A training that is killed again and again ends as if nothing had happened."""

import json
import random
import shutil
import signal
import time

import pytest

from tests.command import Command, wait_for
from tests.e2e.test_features import run, task_dir, typed
from tests.synthetic import make_feature_folder

pytestmark = pytest.mark.slow
N_KILLS = 3
# Some three thousand steps and a checkpoint every two dozen: kills fall on steps, validations and saves alike.
MANY = ("train.epochs=240", "train.n_validations=120", "train.decay_fraction=0.5")


def test_training_killed_at_random_ends_with_the_weights_of_an_uninterrupted_one(tmp_path):
    workplace = make_feature_folder(tmp_path / "features").parent
    run(workplace, "task=splits")
    run(workplace, *MANY)
    path = task_dir(workplace, "train_sae")
    uninterrupted = (path / "export" / "sae_weights.safetensors").read_bytes()
    shutil.rmtree(path)
    moments = random.Random(0)
    last = path / "checkpoints" / "last.ckpt"
    for _ in range(N_KILLS):
        seen = last.stat().st_mtime_ns if last.exists() else 0
        process = Command(typed(workplace, *MANY))
        wait_for(lambda seen=seen: last.exists() and last.stat().st_mtime_ns != seen)
        time.sleep(moments.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        code, said = process.wait()
        assert code == -signal.SIGKILL, said
        assert json.loads((path / "manifest.json").read_text())["status"] == "running"
    assert "Resuming" in run(workplace, *MANY)
    assert (path / "export" / "sae_weights.safetensors").read_bytes() == uninterrupted
    assert [file.name for file in (path / "checkpoints").iterdir() if file.name.startswith(".")] == []


def test_a_terminated_sweep_says_so_and_goes_on(tmp_path):
    workplace = make_feature_folder(tmp_path / "features").parent
    run(workplace, "task=splits")
    fewer = ("train.epochs=60", "train.n_validations=30", "train.decay_fraction=0.5")
    sweep = (*fewer, "task=train_sae_sweep", "sweep.grid=['sae.k=2,4,8']")
    process = Command(typed(workplace, *sweep))
    wait_for(lambda: len(list(workplace.rglob("last.ckpt"))) == 3)
    process.send_signal(signal.SIGTERM)
    code, said = process.wait()
    assert code == 128 + signal.SIGTERM, said
    manifests = [path for path in workplace.rglob("manifest.json") if path.parent.name.startswith("train_sae")]
    assert [json.loads(path.read_text())["status"] for path in manifests] == ["interrupted"] * 4
    run(workplace, *sweep)
    assert [json.loads(path.read_text())["status"] for path in manifests] == ["completed"] * 4
    assert len(list(workplace.rglob("sae_weights.safetensors"))) == 3
