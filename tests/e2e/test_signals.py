"""Ctrl-C, SIGTERM and kill -9 on the real command: workers end, one line says what is kept, the restart goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.e2e.test_features import command, run, task_dir
from tests.synthetic import make_feature_folder

pytestmark = pytest.mark.slow


def wait_for(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    """The slides of the small quickstart, drawn."""
    pytest.importorskip("openslide")
    from src.data.synthetic.slides import generate_slides

    folder = tmp_path_factory.mktemp("slides")
    generate_slides(folder / "synthetic_slides_small", n_slides=18, n_cases=18, size=768)
    return folder


def tile(slides: Path, name: str) -> tuple[list[str], Path]:
    patches = slides / name
    typed = ["exp=quickstart_small", "task=tile", f"paths.data={slides}", f"paths.runs={slides / 'runs' / name}"]
    # Small patches take the workers longer.
    typed += [f"dataset.patches_dir={patches}", "tile.patch_size=8", "tile.step=2"]
    return [sys.executable, "-m", "src.run", *typed], patches


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_workers_of_tile_end_with_it(slides, number):
    typed, patches = tile(slides, number.name)
    process = subprocess.Popen(
        typed, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    wait_for(lambda: list(patches.glob("patches/[!.]*.h5")))
    workers = psutil.Process(process.pid).children(recursive=True)
    assert len(workers) >= 2
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does
    else:
        os.kill(process.pid, number)
    _, alive = psutil.wait_procs(workers, timeout=5)
    assert alive == []
    said, _ = process.communicate(timeout=30)
    lines = [line for line in said.splitlines() if "synthetic" not in line]
    (manifest,) = (slides / "runs" / number.name).rglob("manifest.json")
    status = json.loads(manifest.read_text())["status"]
    if number == signal.SIGKILL:
        assert (process.returncode, status, lines) == (-number, "running", [])
        return
    assert (process.returncode, status) == (128 + number, "interrupted")
    (line,) = lines
    assert line.startswith(f"Interrupted by {number.name}; kept: ")
    assert " of 18 slides cut. Go on with: python -m src.run exp=quickstart_small task=tile" in line


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_interrupted_training_names_its_checkpoint_and_the_command_that_goes_on(tmp_path, number):
    workplace = make_feature_folder(tmp_path / "features").parent
    many = ("train.epochs=30", "train.n_validations=15")
    run(workplace, "task=splits")
    typed = command(workplace, *many, "overwrite=true")
    process = subprocess.Popen(typed, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for(lambda: list(workplace.rglob("last.ckpt")))
    process.send_signal(number)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    (line,) = [line for line in said.splitlines() if "Interrupted" in line]
    assert said.rstrip().endswith(line)
    assert "Traceback" not in said
    kept, _, going_on = line.partition(". Go on with: python -m src.run ")
    assert f"Interrupted by {number.name}; kept: the checkpoint of step " in kept
    assert "overwrite" not in going_on
    assert json.loads((task_dir(workplace, "train_sae") / "manifest.json").read_text())["status"] == "interrupted"
    done = subprocess.run([sys.executable, "-m", "src.run", *going_on.split()], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Resuming" in done.stdout + done.stderr


def test_an_interrupted_sweep_of_runs_ends_as_one(tmp_path):
    workplace = make_feature_folder(tmp_path / "features").parent
    run(workplace, "task=splits")
    typed = command(workplace, "train.epochs=30", "train.n_validations=15", "sae.k=4,8", multirun=True)
    process = subprocess.Popen(typed, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for(lambda: list(workplace.rglob("last.ckpt")))
    process.terminate()
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert said.rstrip().splitlines()[-1].endswith("sae.k=4,8 --multirun")
    assert said.count("Interrupted by SIGTERM; kept: the checkpoint") == 1
    assert "Traceback" not in said
    assert len(list(workplace.rglob("checkpoints"))) == 1
