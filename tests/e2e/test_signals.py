"""Ctrl-C, SIGTERM and kill -9 on the real command: workers end, one line says what is kept, the restart goes on."""

import json
import os
import signal
from pathlib import Path

import psutil
import pytest

from tests.command import Command, run_command, wait_for
from tests.e2e.test_features import run, task_dir, typed
from tests.synthetic import make_feature_folder

pytestmark = pytest.mark.slow


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
    given = ["exp=quickstart_small", "task=tile", f"paths.data={slides}", f"paths.runs={slides / 'runs' / name}"]
    # Small patches take the workers longer.
    given += [f"dataset.patches_dir={patches}", "tile.patch_size=8", "tile.step=4"]
    return given, patches


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_workers_of_tile_end_with_it(slides, number):
    given, patches = tile(slides, number.name)
    process = Command(given)
    wait_for(lambda: list(patches.glob("patches/[!.]*.h5")))
    workers = psutil.Process(process.pid).children(recursive=True)
    assert len(workers) >= 2
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does
    else:
        process.send_signal(number)
    _, alive = psutil.wait_procs(workers, timeout=5)
    assert alive == []
    code, said = process.wait(30)
    lines = [line for line in said.splitlines() if "synthetic" not in line]
    (manifest,) = (slides / "runs" / number.name).rglob("manifest.json")
    status = json.loads(manifest.read_text())["status"]
    if number == signal.SIGKILL:
        assert (code, status, lines) == (-number, "running", [])
        return
    assert (code, status) == (128 + number, "interrupted")
    (line,) = lines
    assert line.startswith(f"Interrupted by {number.name}; kept: ")
    assert " of 18 slides cut. Go on with: python -m src.run exp=quickstart_small task=tile" in line


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_interrupted_training_names_its_checkpoint_and_the_command_that_goes_on(tmp_path, number):
    workplace = make_feature_folder(tmp_path / "features").parent
    many = ("train.epochs=30", "train.n_validations=15")
    run(workplace, "task=splits")
    process = Command(typed(workplace, *many, "overwrite=true"))
    wait_for(lambda: list(workplace.rglob("last.ckpt")))
    process.send_signal(number)
    code, said = process.wait(60)
    assert code == 128 + number, said
    (line,) = [line for line in said.splitlines() if "Interrupted" in line]
    assert said.rstrip().endswith(line)
    assert "Traceback" not in said
    kept, _, going_on = line.partition(". Go on with: python -m src.run ")
    assert f"Interrupted by {number.name}; kept: the checkpoint of step " in kept
    assert "overwrite" not in going_on
    assert json.loads((task_dir(workplace, "train_sae") / "manifest.json").read_text())["status"] == "interrupted"
    assert "Resuming" in run_command(*going_on.split())


def test_an_interrupted_sweep_of_runs_ends_as_one(tmp_path):
    workplace = make_feature_folder(tmp_path / "features").parent
    run(workplace, "task=splits")
    swept = ("train.epochs=30", "train.n_validations=15", "sae.k=4,8", "cluster.one_pass=false")
    process = Command(typed(workplace, *swept, multirun=True))
    wait_for(lambda: list(workplace.rglob("last.ckpt")))
    process.send_signal(signal.SIGTERM)
    code, said = process.wait(60)
    assert code == 128 + signal.SIGTERM, said
    assert said.rstrip().splitlines()[-1].endswith("sae.k=4,8 cluster.one_pass=false --multirun"), said
    assert said.count("Interrupted by SIGTERM; kept: the checkpoint") == 1
    assert "Traceback" not in said
    assert len(list(workplace.rglob("checkpoints"))) == 1
