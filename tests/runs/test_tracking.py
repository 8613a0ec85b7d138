"""Runs are logged to W&B from outside: what it is told, and that nothing it does reaches the run."""

import json
import logging
import threading
import time
from contextlib import ExitStack

import pytest
from omegaconf import OmegaConf

from src import config
from src.files import write_atomically
from src.report.page import Page, PageTable, write_page
from src.runs import tracking, wandb_upload
from src.runs.execution import execute
from src.runs.rundir import RunDir
from src.runs.tracked_metrics import WHOLE, key_within, read_metrics, values_within
from tests.runs.trackers import MISBEHAVIOURS, misbehaving_server, read_offline, wandb_server
from tests.synthetic import make_feature_folder

pytest.importorskip("wandb")
ROWS = "step,epoch,val/a_loss,val/a_b_loss,train/loss\n1,0,,,3\n2,0,5,6,\n4,1,4,,2\n"


def make_rundir(path):
    """Makes a run directory as a finished task with two models leaves it."""
    rundir = RunDir(path / "runs" / "study" / "default" / "fold_0" / "train_mil")
    with write_atomically(rundir.config_path) as temporary:
        temporary.write_text("task: {name: train_mil}\nseed: 3\n")
    rundir.metrics_path.write_text(ROWS)
    rundir.table("metrics").write_text("split,auroc\nval,0.5\n")
    write_page(Page("Page", tables=[PageTable(rundir.table("metrics"), "A table.")]), rundir.page_path)
    rundir.write_json(rundir.results_path, {"val/a_auroc": 0.5, "test/a_b_auroc": 0.75, "n_items": 3})
    outputs = [{"path": "results.json", "digest": "d1"}, {"path": "run.log", "digest": ""}]
    manifest = {"status": "completed", "schema_version": 2, "digest": "d0", "outputs": outputs}
    rundir.write_json(rundir.manifest_path, manifest)
    return rundir


@pytest.fixture
def rundir(tmp_path):
    return make_rundir(tmp_path)


def configuration(rundir, **wandb):
    options = {"project": "loupe", "entity": None, "offline": False, "wait": None} | wandb
    return OmegaConf.create({"logger": {"wandb": options}, "paths": {"runs": str(rundir.path.parents[3])}})


@pytest.mark.parametrize(
    ("key", "part", "expected"),
    [
        ("val/a_loss", "a", "val/loss"),
        ("val/a_b_loss", "a", None),  # of the part with the longer name
        ("val/a_b_loss", "a_b", "val/loss"),
        ("val/loss", "a", None),
        ("val/loss", WHOLE, "val/loss"),
        ("epoch", WHOLE, "epoch"),
        ("val/a_loss", WHOLE, None),
    ],
)
def test_keys_are_the_same_within_every_part(key, part, expected):
    assert key_within(key, part, ["a", "a_b"]) == expected


def test_each_part_has_its_own_rows(rundir):
    assert read_metrics(rundir.metrics_path, "a", ["a", "a_b"]) == [(2, {"val/loss": 5}), (4, {"val/loss": 4})]
    assert read_metrics(rundir.metrics_path, "a_b", ["a", "a_b"]) == [(2, {"val/loss": 6})]
    whole = [(1, {"train/loss": 3, "epoch": 0}), (4, {"train/loss": 2, "epoch": 1})]
    assert read_metrics(rundir.metrics_path, WHOLE, ["a", "a_b"]) == whole
    assert values_within({"val/a_auroc": 1, "n": 2}, "a", ["a"]) == {"val/auroc": 1}
    assert read_metrics(rundir.path / "none.csv", WHOLE, []) == []


@pytest.mark.slow
def test_wandb_is_told_of_the_run_and_of_each_part(rundir):
    """Offline twice, as a run that resumes: the second has all, under the same ids, and the first is gone."""
    runs, ended = rundir.path.parents[3], threading.Event()
    ended.set()
    rundir.write_json(rundir.path / "wandb.json", {"id": "identity", "parts": []})
    tracking.note_part(rundir, "a")
    tracking.note_part(rundir, "a_b")
    for _ in range(2):
        wandb_upload.upload(rundir, runs, {"project": "loupe", "entity": None, "offline": True}, ended)
        time.sleep(1.1)  # W&B's folders are named by the second
    found = [read_offline(path) for path in sorted((runs / "wandb").glob("offline-run-*/*.wandb"))]
    by_name = {one["run"][0].display_name: one for one in found}
    assert set(by_name) == {"fold_0/train_mil", "fold_0/train_mil/a", "fold_0/train_mil/a_b"}
    assert len(found) == 3
    for one in found:
        assert (one["run"][0].run_group, one["run"][0].job_type) == ("study/default", "train_mil")
    own = by_name["fold_0/train_mil/a"]
    assert [(row["_step"], row["val/loss"]) for row in own["history"]] == [(2, 5), (4, 4)]
    assert any(row.get("val/auroc") == 0.5 for row in own["summary"])
    whole = by_name["fold_0/train_mil"]
    assert [row["train/loss"] for row in whole["history"] if "train/loss" in row] == [3, 2]
    assert any("analysis/metrics/_type" in row for row in whole["history"])
    (artifact,) = [one for one in whole["artifact"] if one.type == "train_mil"]
    (entry,) = artifact.manifest.contents
    assert (entry.path, entry.ref) == ("results.json", rundir.results_path.as_uri())
    assert json.loads(artifact.metadata)["digests"] == {"results.json": "d1"}


@pytest.mark.slow
def test_a_tracker_that_misbehaves_stops_and_slows_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "4")
    uploads = {}
    with ExitStack() as servers:
        for how in MISBEHAVIOURS:
            url, asked = servers.enter_context(misbehaving_server(how))
            monkeypatch.setenv("WANDB_BASE_URL", url)
            rundir = make_rundir(tmp_path / how)
            started = time.monotonic()
            with tracking.tracking(configuration(rundir), rundir):
                pass
            assert time.monotonic() - started < 2
            uploads[how] = (rundir, asked, tracking._UPLOADS[-1])
        for how, (rundir, asked, upload) in uploads.items():
            assert upload.process.wait(timeout=150) == 1, how
            assert asked, how
            assert "W&B did not take the run" in upload.log_path.read_text()
            (path,) = (rundir.path.parents[3] / "wandb").glob("offline-run-*/*.wandb")
            assert any(row.get("train/loss") == 2 for row in read_offline(path)["history"]), how


@pytest.mark.slow
def test_a_training_beside_a_tracker_that_hangs_ends_with_the_same_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    config.register_resolvers()
    make_feature_folder(tmp_path / "features", n_slides=20, n_patches=30)
    typed = ["exp=features", f"dataset.dir={tmp_path / 'features'}", "dataset.positive_class=tumor", "trainer=cpu"]
    typed += [f"paths.data={tmp_path / 'data'}", "train.batch_size=256", "train.epochs=2", "splits.n_folds=2"]
    exported = []
    with misbehaving_server("hangs") as (url, asked):
        monkeypatch.setenv("WANDB_BASE_URL", url)
        for logger in ("csv", "wandb"):
            for task in ("splits", "train_sae"):
                overrides = [*typed, f"paths.runs={tmp_path / logger}", f"logger={logger}", f"task={task}"]
                execute(config.compose(overrides), overrides)
            (path,) = (tmp_path / logger).glob("**/sae_weights.safetensors")
            exported.append(path.read_bytes())
        for upload in tracking._UPLOADS[-2:]:  # of both tasks
            deadline = time.monotonic() + 60
            while not asked and time.monotonic() < deadline:
                time.sleep(0.05)
            assert upload.process.poll() is None
            upload.process.kill()
            upload.process.wait()
    assert exported[0] == exported[1]


@pytest.mark.slow
def test_a_resumed_run_continues_its_wandb_run(rundir, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    with wandb_server() as (url, history):
        monkeypatch.setenv("WANDB_BASE_URL", url)

        def follow(rows, seen):
            """Logs as the run grows, and says how many rows W&B has before the run has ended."""
            rundir.metrics_path.write_text("step,train/loss\n" + "".join(f"{row},{row / 10}\n" for row in rows))
            with tracking.tracking(configuration(rundir), rundir):
                deadline = time.monotonic() + 90
                while time.monotonic() < deadline and sum(map(len, history.values())) < seen:
                    time.sleep(0.1)
            upload = tracking._UPLOADS[-1]
            assert upload.process.wait(timeout=120) == 0, upload.log_path.read_text()

        follow(range(1, 5), seen=3)  # the last row may yet be added to
        (identity,) = history
        follow(range(1, 9), seen=3)  # at once: W&B sends every 15 seconds
    assert list(history) == [identity]
    steps = [(row["_step"], row["train/loss"]) for row in history[identity] if "train/loss" in row]
    assert steps == [(step, step / 10) for step in range(1, 9)]


def test_without_wandb_nothing_is_started(rundir):
    n_uploads = len(tracking._UPLOADS)
    with tracking.tracking(OmegaConf.create({"logger": {}}), rundir):
        tracking.note_part(rundir, "a")
    assert len(tracking._UPLOADS) == n_uploads
    assert not (rundir.path / "wandb.json").exists()


def test_the_end_of_the_command_waits_no_longer_than_it_was_told(monkeypatch, caplog, tmp_path):
    class Process:
        returncode = None

        def poll(self):
            return self.returncode

    caplog.set_level(logging.INFO)
    hanging, refused = Process(), Process()
    refused.returncode = 1
    uploads = [tracking._Upload(one, tmp_path / "log", time.monotonic() + 0.3) for one in (hanging, hanging, refused)]
    monkeypatch.setattr(tracking, "_UPLOADS", uploads)
    started = time.monotonic()
    tracking._wait_for_uploads()
    assert time.monotonic() - started < 1
    assert "Still uploading" in caplog.text
    assert "W&B was not reached" in caplog.text


@pytest.mark.parametrize(
    ("options", "job", "seconds"),
    [({}, None, 0), ({}, "17", 60), ({"offline": True}, None, 60), ({"wait": 5}, "17", 5), ({"wait": 0}, "17", 0)],
)
def test_a_command_waits_where_its_end_is_the_end_of_the_upload(options, job, seconds, rundir, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    if job is not None:
        monkeypatch.setenv("SLURM_JOB_ID", job)
    assert tracking._wait_seconds(configuration(rundir, **options).logger.wandb) == seconds
