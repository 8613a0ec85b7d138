import json

import pytest

from src import config, runner
from src.run_lock import LiveRunError, lock_run
from src.runner import execute, open_rundir

config.register_resolvers()


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Starts a run of train_sae whose work is done by a stand-in."""
    data = tmp_path / "data"
    (data / "h5_files").mkdir(parents=True)
    (data / "dataset.csv").touch()
    (tmp_path / "splits").mkdir()

    def start(work, *overrides, task="train_sae"):
        typed = [
            "exp=features",
            f"dataset.dir={data}",
            f"dataset.splits_dir={tmp_path / 'splits'}",
            f"paths.runs={tmp_path / 'runs'}",
            f"task={task}",
            *overrides,
        ]
        monkeypatch.setattr(config, "task_function", lambda _: work)
        composed = config.compose(typed)
        start.rundir = open_rundir(config.resolve(composed), typed)
        return execute(composed, typed)

    return start


def never(cfg, rundir):
    pytest.fail("the task ran again")


def snapshot(folder):
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def test_finished_run_is_left_alone(start):
    def work(cfg, rundir):
        rundir.table("numbers").write_text("a\n1\n")
        return {"test/auroc": 0.5}

    assert start(work) == {"test/auroc": 0.5}
    before = snapshot(start.rundir.path)
    assert start(never) == {"test/auroc": 0.5}
    assert snapshot(start.rundir.path) == before
    manifest = start.rundir.read_manifest()
    assert manifest["status"] == "completed"
    assert {"path": "analysis/numbers.csv", "bytes": 4} in manifest["outputs"]
    assert (start.rundir.path / ".hydra" / "overrides.yaml").is_file()


def test_failed_run_says_why_and_is_resumed(start):
    def fail(cfg, rundir):
        rundir.table("kept").write_text("half the work")
        raise ValueError("Expected luck, got none")

    with pytest.raises(ValueError, match="Expected luck"):
        start(fail)
    manifest = start.rundir.read_manifest()
    assert manifest["status"] == "failed"
    assert manifest["error"] == "ValueError: Expected luck, got none"
    assert "Traceback" in start.rundir.log_path.read_text()
    seen = []
    start(lambda cfg, rundir: seen.append(rundir.table("kept").read_text()) or {})
    assert seen == ["half the work"]


def test_full_disk_does_not_hide_the_first_error(start, monkeypatch):
    def fail(cfg, rundir):
        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(runner, "write_even_when_full", full)
        raise OSError(28, "The latents of slide 7 need 3 MB")

    with pytest.raises(OSError, match="latents of slide 7"):
        start(fail)


def test_overwrite_starts_from_nothing(start):
    def work(cfg, rundir):
        assert not rundir.table("old").exists()
        rundir.table("old").touch()
        return {}

    start(work)
    start(work, "overwrite=true")


def test_other_configuration_in_the_directory_is_an_error_that_shows_it(start):
    start(lambda cfg, rundir: {})
    stored = start.rundir.config_path
    stored.write_text(stored.read_text().replace("k: 16", "k: 99"))
    with pytest.raises(ValueError, match=r"sae\.k: 99 there, 16 here"):
        start(never)


def test_second_start_on_a_live_run_stops(start):
    start(lambda cfg, rundir: {})
    start.rundir.manifest_path.write_text(json.dumps(start.rundir.read_manifest() | {"status": "running"}))
    with lock_run(start.rundir.lock_path), pytest.raises(LiveRunError, match="no other process at work"):
        start(never)


def test_upstream_that_changed_is_an_error(start):
    start(lambda cfg, rundir: {})

    def encode(cfg, rundir):
        rundir.upstream("train_sae")
        return {}

    start(encode, task="encode")
    start(never, task="encode")
    start(lambda cfg, rundir: {}, "overwrite=true", "seed=0")
    start(lambda cfg, rundir: {"x": 1}, "overwrite=true")
    with pytest.raises(ValueError, match=r"train_sae run that .* was made from .*overwrite=true"):
        start(never, task="encode")


def test_missing_upstream_names_the_command(start):
    with pytest.raises(
        FileNotFoundError, match=r"finished train_sae run at .*Make it with: python -m src\.run .*task=train_sae"
    ):
        start(lambda cfg, rundir: rundir.upstream("train_sae"), task="encode")
