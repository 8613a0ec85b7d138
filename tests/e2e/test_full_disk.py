"""A disk that is full, read-only or taken by a file: one sentence, a manifest that says failed, and a way on."""

import json
import signal
import subprocess
from pathlib import Path

import pytest

from tests.command import Command
from tests.e2e.test_features import run, task_dir, typed
from tests.synthetic import make_feature_folder

pytestmark = pytest.mark.slow


@pytest.fixture
def workplace(tmp_path):
    return make_feature_folder(tmp_path / "features").parent


@pytest.fixture
def mount(workplace):
    """Puts another file system in the place of the folder of runs."""
    runs = workplace / "runs"

    def mount(options: str) -> Path:
        runs.mkdir(exist_ok=True)
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", runs], capture_output=True, text=True)
        if done.returncode != 0:
            pytest.skip(f"mounting is refused: {done.stderr.strip()}")
        return runs

    yield mount
    subprocess.run(["umount", "--lazy", runs], capture_output=True)


def test_training_on_a_full_disk_says_what_is_missing_and_goes_on_when_there_is_space(workplace, mount):
    runs = mount("size=600k")
    run(workplace, "task=splits")
    said = run(workplace, "sae.expansion=64", code=1)
    assert "Traceback" not in said
    last = said.rstrip().splitlines()[-1]
    assert last.startswith("Could not write ")
    assert "last.ckpt: No space left on device: it needs at least 414 kB, and " in last
    path = task_dir(workplace, "train_sae")
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["status"] == "failed"
    assert "last.ckpt" in manifest["error"]
    subprocess.run(["mount", "-o", "remount,size=50m", runs], check=True)
    assert "Resuming" in run(workplace, "sae.expansion=64")


@pytest.mark.parametrize("multirun", [False, True])
def test_a_read_only_folder_of_runs_is_said_before_any_work(workplace, mount, multirun):
    run(workplace, "task=splits", f"paths.runs={workplace / 'others'}")
    mount("ro")
    said = run(workplace, code=1, multirun=multirun)
    (line,) = said.strip().splitlines()
    assert line.startswith(f"Expected to be able to write {workplace / 'runs'}")
    assert line.endswith(", got: Read-only file system. Give e.g. paths.runs=<folder>.")


def test_a_file_in_the_place_of_the_folder_of_runs_is_said_before_any_work(workplace):
    (workplace / "runs").touch()
    said = run(workplace, code=1)
    assert "Traceback" not in said
    assert f"paths.runs: expected a folder, got {workplace / 'runs'}" in said
    assert len(said.strip().splitlines()) == 2


def test_a_cut_checkpoint_is_one_sentence_with_the_way_on(workplace):
    n_bytes = 700
    run(workplace, "task=splits")
    process = Command(typed(workplace))
    checkpoint = []
    while not checkpoint:
        checkpoint = list(workplace.rglob("last.ckpt"))
    process.send_signal(signal.SIGKILL)
    process.wait()
    (last,) = checkpoint
    last.write_bytes(last.read_bytes()[:n_bytes])
    said = run(workplace, code=1)
    assert "Traceback" not in said
    sentence = said.rstrip().splitlines()[-1]
    assert sentence.startswith(f"Expected {last} to be a whole checkpoint, got {n_bytes} bytes that are none.")
    last.unlink()
    run(workplace)
