"""What task=status says of runs in every state, of jobs that began nothing, and of manifests that it cannot read."""

import json
import os
import subprocess
import sys
import time

import pytest

from src import config
from src.file_lock import hold_lock
from src.runs import overview
from src.runs.execution import execute
from src.runs.jobs import LOCK, JobRow, write_jobs
from src.runs.provenance import SCHEMA_VERSION
from src.runs.slurm_queue import QueuedJob


def make_run(path, status, *, error=None, slurm=None, schema=SCHEMA_VERSION, overrides=("exp=a", "fold=0")):
    (path / ".hydra").mkdir(parents=True)
    manifest = {"schema_version": schema, "status": status, "error": error, "slurm": slurm or {}}
    (path / "manifest.json").write_text(json.dumps(manifest))
    (path / ".hydra" / "overrides.yaml").write_text("".join(f"- {one}\n" for one in overrides))
    (path / "run.log").write_text("first\nlast words\n")
    return path


def write_holder(path, host, age):
    holder = {"host": host, "pid": 1, "process_started": "1", "slurm_job": None, "since": 0.0}
    (path / ".lock").write_text(json.dumps(holder))
    os.utime(path / ".lock", (time.time() - age,) * 2)


@pytest.fixture
def show(tmp_path, monkeypatch, caplog):
    """Runs the task, and returns its results and the lines of its table by run."""
    config.register_resolvers()
    caplog.set_level("INFO")

    def show(*overrides, queue=None, ended=None):
        monkeypatch.setattr(overview, "read_queue", lambda: queue)
        monkeypatch.setattr(overview, "ended_states", lambda ids: {one: ended[one] for one in ids if ended})
        typed = ["task=status", f"paths.runs={tmp_path}", *overrides]
        monkeypatch.setattr(config, "hydra_overrides", lambda: typed)
        caplog.clear()
        results = execute(config.compose(typed), typed)
        lines = caplog.text.splitlines()
        places = {line.split()[0]: index for index, line in enumerate(lines) if "/" in line.split(" ")[0]}
        table = {run: [line.strip() for line in lines[index : index + 3]] for run, index in places.items()}
        return {key.removeprefix("n_"): int(value) for key, value in results.items() if value}, table, caplog.text

    return show


def test_every_state_is_told_with_what_to_do(tmp_path, show):
    make_run(tmp_path / "a" / "finished", "completed")
    make_run(tmp_path / "a" / "failed", "failed", error="ValueError: Expected this,\ngot that.")
    make_run(
        tmp_path / "a" / "interrupted", "interrupted", error="Interrupted: 143", overrides=("exp=a", "overwrite=true")
    )
    make_run(tmp_path / "a" / "lost", "running")
    away = make_run(tmp_path / "a" / "away", "running")
    write_holder(away, "another-host", 61)
    beating = make_run(tmp_path / "a" / "beating", "running")
    write_holder(beating, "another-host", 5)
    (beating / "metrics.csv").write_text("step,epoch,val/explained_variance\n10,0,0.25\n20,1,\n")
    idle = make_run(tmp_path / "a" / "idle", "running")
    os.utime(idle / "run.log", (time.time() - 7200,) * 2)
    with hold_lock(idle / ".lock"):
        counts, table, said = show()
    assert counts == {"running": 1, "stalled": 1, "interrupted": 1, "lost": 2, "failed": 1, "finished": 1}
    assert "a/finished" not in table
    assert table["a/beating"][0].split()[1:8] == [
        "running",
        "epoch",
        "1,",
        "step",
        "20",
        "val/explained_variance",
        "0.25",
    ]
    assert table["a/idle"][1] == "nothing written for 120 minutes"
    assert table["a/failed"][1:] == ["ValueError: Expected this, got that.", "python -m src.run exp=a fold=0"]
    assert table["a/interrupted"][2] == "python -m src.run exp=a"
    assert table["a/lost"][1] == "its process is gone without a word; the last one: last words"
    assert table["a/away"][0].split()[1] == "lost"
    assert "7 runs under" in said
    assert "a/finished" in show("status.finished=true")[1]


def test_slurm_tells_what_manifests_cannot(tmp_path, show):
    folder = tmp_path / ".sweeps" / "1"
    rows = [
        JobRow(tmp_path / "a" / f"fold_{index}", f"12_{index}", "folds", f"python -m src.run fold={index}", log, folder)
        for index, log in enumerate([folder / f"{index}.out" for index in range(4)])
    ]
    write_jobs(folder, tmp_path, rows)
    (folder / "3.out").write_text("Traceback\nImportError: no such library\nsrun: error: exited with 1\n")
    make_run(tmp_path / "a" / "fold_2", "interrupted", slurm={"SLURM_JOB_ID": "12"})
    make_run(
        tmp_path / "a" / "fold_4",
        "running",
        slurm={"SLURM_JOB_ID": "16", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "4"},
    )
    queue = {
        "12_0": QueuedJob("PENDING", "Dependency"),
        "12_1": QueuedJob("RUNNING", ""),
        "12_2": QueuedJob("PENDING", ""),
    }
    counts, table, _ = show(queue=queue, ended={"12_4": "OUT_OF_MEMORY", "12_3": "FAILED"})
    assert counts == {"running": 1, "queued": 2, "lost": 1, "failed": 1}
    assert table["a/fold_0"][:2] == [table["a/fold_0"][0], "waits: Dependency"]
    assert table["a/fold_2"][0].split()[1:] == ["queued", "12_2", "pending"]
    assert table["a/fold_3"][1:] == [
        "its job ended before the run began: ImportError: no such library",
        "python -m src.run fold=3",
    ]
    assert table["a/fold_4"][0].split()[1:] == ["lost", "12_4", "out_of_memory"]
    # Without SLURM's word nothing is invented.
    counts, _, _ = show(queue=None, ended=None)
    assert counts == {"interrupted": 1, "lost": 1, "failed": 3}


def test_runs_that_workers_have_before_them_are_queued(tmp_path, show):
    folder = tmp_path / ".sweeps" / "1"
    write_jobs(folder, tmp_path, [JobRow(tmp_path / "a" / "fold_0", "", "folds", "python", folder / "log", folder)])
    with hold_lock(folder / LOCK):
        assert show()[0] == {"queued": 1}
    assert show()[0] == {"failed": 1}


def test_older_and_damaged_manifests_are_named(tmp_path, show):
    make_run(tmp_path / "a" / "old", "failed", error="ValueError: no", schema=1)
    (make_run(tmp_path / "a" / "cut", "running") / "manifest.json").write_text('{"sta')
    (make_run(tmp_path / "a" / "list", "running") / "manifest.json").write_text("[]")
    counts, table, _ = show()
    assert counts == {"failed": 3}
    assert table["a/old"][1].startswith("made by another version of this program (schema 1, now ")
    assert table["a/old"][1].endswith("; ValueError: no")
    assert table["a/cut"][1] == table["a/list"][1] == "its manifest.json cannot be read; it was cut short or edited"
    assert table["a/cut"][2].endswith("overwrite=true")


def test_name_leaves_out_other_experiments(tmp_path, show):
    for name in ("one", "two"):
        make_run(tmp_path / name / "default" / "fold_0" / "train_sae", "failed")
    assert show()[0] == {"failed": 2}
    assert list(show("name=two")[1]) == ["two/default/fold_0/train_sae"]
    assert "0 runs under" in show("name=three")[2]


def test_status_imports_neither_torch_nor_pandas_and_leaves_nothing(tmp_path):
    make_run(tmp_path / "runs" / "a" / "failed", "failed")
    before = sorted((tmp_path / "runs").rglob("*"))
    script = (
        "import runpy, sys; sys.argv = ['run', 'task=status', 'paths.runs=' + sys.argv[1]]\n"
        "runpy.run_module('src.run', run_name='__main__')\n"
        "print(sorted({'torch', 'pandas', 'lightning'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "runs")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr
    assert "1 failed" in done.stdout
    assert sorted((tmp_path / "runs").rglob("*")) == before
