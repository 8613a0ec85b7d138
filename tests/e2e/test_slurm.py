"""Folds as SLURM jobs on a real controller: a drained node, a cancelled job and a requeue change no byte of results.

CI starts SLURM by `.ci/slurm`; without one these tests fail there, and are skipped elsewhere.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from src.runs.jobs import read_jobs
from src.runs.slurm_queue import read_queue
from tests.command import run_command
from tests.synthetic import make_feature_folder

pytestmark = [pytest.mark.slow, pytest.mark.slurm]
SLURM = ("cluster=slurm", "cluster.gpus=0", "cluster.cpus=1", "cluster.mem_gb=null", "cluster.minutes=30")


@pytest.fixture(scope="module")
def node():
    """The name of the one node."""
    found = "no sinfo on the path"
    if shutil.which("sinfo"):
        done = subprocess.run(["sinfo", "-h", "-N", "-o", "%N %t"], capture_output=True, text=True, timeout=60)
        found = done.stdout + done.stderr
        if done.returncode == 0 and re.search(r"idle|mix|alloc", found) and os.geteuid() == 0:
            return found.split()[0]
    reason = f"needs a SLURM controller and root, found: {found}. Start one with .ci/slurm."
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    path = tmp_path_factory.mktemp("slurm")
    make_feature_folder(path / "features", n_slides=24, n_patches=30)
    return path


def start(workplace: Path, runs: str, *overrides: str, multirun: bool = True) -> str:
    """Runs the command, and returns what it said."""
    few = ("train.epochs=600", "train.n_validations=30", "train.decay_fraction=0.5", "splits.n_folds=2")
    few += ("train.batch_size=64", "sae.k=6", "trainer=cpu")
    places = (
        f"dataset.dir={workplace}/features",
        f"paths.data={workplace}/data",
        f"paths.runs={workplace}/{runs}",
    )
    typed = [*(["-m"] if multirun else []), "exp=features", "name=small", "dataset.positive_class=tumor"]
    return run_command(*typed, *places, *few, *overrides)


def status(workplace: Path, *overrides: str) -> dict[str, str]:
    """Returns the lines that `task=status` shows, by the run that they are of."""
    said = start(workplace, "parallel", "task=status", "status.finished=true", *overrides, multirun=False)
    return {line.split()[0]: line for line in said.splitlines() if "/" in line.split(" ")[0]}


def wait_for(what, seconds=600):
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, subprocess.run(["squeue"], capture_output=True, text=True).stdout
        time.sleep(0.1)
    return found


def in_queue(*job_ids: str) -> bool:
    queue = read_queue()
    return queue is None or not queue.keys().isdisjoint(job_ids)


def scontrol(*words: str) -> None:
    subprocess.run(["scontrol", *words], check=True, timeout=60)


def results_of(runs: Path) -> dict[str, bytes]:
    """Returns the weights, tables and latents that runs left."""
    names = ("sae_weights.safetensors", "metrics.csv", "results.json")
    paths = [path for path in (runs / "small").rglob("*") if path.name in names or "latents" in path.parts]
    return {path.relative_to(runs).as_posix(): path.read_bytes() for path in paths if path.is_file()}


def test_folds_through_slurm_end_as_serial_folds(workplace, node):
    folds = ("fold=range(2)", "task=train_sae,encode")
    start(workplace, "serial", "task=splits", multirun=False)
    start(workplace, "serial", *folds)
    runs, folds = workplace / "parallel", (*folds, *SLURM)
    train, encode = (
        [
            path.relative_to(workplace / "serial").as_posix()
            for path in sorted((workplace / "serial").glob(f"small/*/*/{task}"))
        ]
        for task in ("train_sae", "encode")
    )

    scontrol("update", f"nodename={node}", "state=drain", "reason=test")
    try:
        said = start(workplace, "parallel", *folds, "cluster.wait=false")
        assert re.search(r"Submitted train_sae: \d+, 2 jobs, no GPU\nSubmitted encode: \d+, 2 jobs", said)
        jobs = {row.run_dir: row.job_id for row in read_jobs(runs)}
        ids = [jobs[runs / name] for name in train]
        assert ids[1] == ids[0].replace("_0", "_1")
        queue = read_queue()
        assert queue is not None
        assert {queue[job_id].state for job_id in jobs.values()} == {"PENDING"}
        lines = status(workplace)
        assert all(" queued " in lines[name] for name in (*train, *encode))
        # The same launch again, while this one waits.
        assert "0 are left" in start(workplace, "parallel", *folds, "cluster.wait=false")
        assert {row.run_dir: row.job_id for row in read_jobs(runs)} == jobs
    finally:
        scontrol("update", f"nodename={node}", "state=resume")

    # Each in the middle of its training. USR2 is what SLURM sends before a job's time ends: submitit requeues the job.
    signals = {ids[0]: ["--signal=USR2"], ids[1]: []}
    saved = {job_id: runs / name / "checkpoints" / "last.ckpt" for job_id, name in zip(ids, train, strict=True)}
    while signals:
        job_id = wait_for(lambda: next((one for one in signals if saved[one].is_file()), None))
        subprocess.run(["scancel", *signals.pop(job_id), job_id], check=True)
    wait_for(lambda: (read_queue() or queue)[ids[0]].state == "PENDING")
    wait_for(lambda: not in_queue(ids[1]))
    lines = status(workplace)
    assert " queued " in lines[train[0]]
    assert " interrupted " in lines[train[1]]
    scontrol("update", f"jobid={ids[0]}", "StartTime=now")  # SLURM holds what is requeued for two minutes

    # The cancelled one again; then what waited for it, which SLURM drops once the array that it needs has ended.
    for _ in range(4):
        said = start(workplace, "parallel", *folds)
        wait_for(lambda: not in_queue(*(row.job_id for row in read_jobs(runs))))
        if "Of 4 runs 4 are finished" in said:
            break
    assert "Of 4 runs 4 are finished" in said
    assert all("Resuming" in (runs / name / "run.log").read_text() for name in train)
    expected, found = results_of(workplace / "serial"), results_of(runs)
    assert len(expected) >= 10
    assert found.keys() == expected.keys()
    assert [name for name, content in expected.items() if found[name] != content] == []


def test_a_job_that_is_killed_is_lost_and_one_that_dies_at_import_failed(workplace, node, tmp_path):
    start(workplace, "serial", "task=splits", multirun=False)
    long = ("train.epochs=5000", "fold=1", "task=train_sae")
    start(workplace, "parallel", *long, *SLURM, "cluster.wait=false")
    row = read_jobs(workplace / "parallel")[-1]
    wait_for(lambda: (row.run_dir / "checkpoints" / "last.ckpt").is_file())
    name = str(row.run_dir.relative_to(workplace / "parallel"))
    assert re.search(r" running +step .* s ago +\d+ running", status(workplace)[name])
    holder = json.loads((row.run_dir / ".lock").read_text())
    os.kill(holder["pid"], signal.SIGKILL)
    wait_for(lambda: not in_queue(row.job_id))
    assert re.search(rf" lost .* {row.job_id} failed", status(workplace)[name])

    broken = f'cluster.setup=["export PYTHONPATH={tmp_path}"]'
    (tmp_path / "hydra.py").write_text("raise ImportError('no such library here')\n")
    start(workplace, "parallel", *long, "sae.k=5", *SLURM, broken, "cluster.wait=false")
    row = read_jobs(workplace / "parallel")[-1]
    wait_for(lambda: not in_queue(row.job_id))
    said = start(workplace, "parallel", "task=status", multirun=False)
    assert "its job ended before the run began: ImportError: no such library here" in said
    assert f"    {row.command}" in said
