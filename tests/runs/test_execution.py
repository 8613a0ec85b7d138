import json
import shutil
from contextlib import contextmanager

import pytest

from src import config
from src.inputs import file_input
from src.runs import execution as runner
from src.runs.execution import execute, open_rundir
from src.runs.lineage import StaleRunError
from src.runs.lock import LiveRunError, lock_run

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
    assert ("analysis/numbers.csv", 4) in [(output["path"], output["bytes"]) for output in manifest["outputs"]]
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


def encode(cfg, rundir):
    rundir.upstream("train_sae")
    return {}


@pytest.mark.slow
def test_upstream_that_changed_is_an_error(start):
    start(lambda cfg, rundir: {})
    start(encode, task="encode")
    start(never, task="encode")
    start(lambda cfg, rundir: {}, "overwrite=true")
    start(never, task="encode")  # the same results
    start(lambda cfg, rundir: {"x": 1}, "overwrite=true")
    with pytest.raises(StaleRunError, match=r"the train_sae run that it was made from is another one.*overwrite=true"):
        start(never, task="encode")


def test_manifest_names_all_that_a_run_was_made_from(start):
    def select_neurons(cfg, rundir):
        rundir.upstream("encode")
        return {}

    start(lambda cfg, rundir: {})
    start(encode, task="encode")
    sae, latents = (start.rundir.path.parent / task for task in ("train_sae", "encode"))
    start(select_neurons, task="select_neurons")
    manifest = start.rundir.read_manifest()
    assert list(manifest["upstream"]) == ["encode"]
    digests = {str(path): json.loads((path / "manifest.json").read_text())["digest"] for path in (sae, latents)}
    assert manifest["ancestors"] == digests


def test_a_run_whose_ancestor_was_removed_names_the_ancestor(start):
    start(lambda cfg, rundir: {})
    start(encode, task="encode")
    shutil.rmtree(start.rundir.path.parent / "train_sae")
    with pytest.raises(StaleRunError, match="task=train_sae overwrite=true"):
        start(never, task="select_neurons")


def test_ancestor_with_other_settings_is_not_built_on(start):
    start(lambda cfg, rundir: {})
    stored = start.rundir.config_path
    stored.write_text(stored.read_text().replace("k: 16", "k: 99"))
    with pytest.raises(StaleRunError, match=r"its settings differ: sae\.k: 99 there, 16 here.*task=train_sae"):
        start(never, task="encode")


@pytest.mark.slow
def test_results_that_were_edited_or_removed_are_noticed(start):
    def work(cfg, rundir):
        rundir.table("numbers").write_text("a\n1\n")
        rundir.checkpoints_dir.mkdir()
        (rundir.checkpoints_dir / "last.ckpt").touch()
        return {}

    start(work)
    (start.rundir.checkpoints_dir / "last.ckpt").unlink()  # may be removed to save space
    start(never)
    table = start.rundir.table("numbers")
    table.touch()
    start(never)
    table.write_text("a\n2\n")
    with pytest.raises(StaleRunError, match=r"analysis/numbers\.csv was changed"):
        start(never)
    table.unlink()
    with pytest.raises(StaleRunError, match=r"analysis/numbers\.csv is gone"):
        start(never, task="encode")


def test_unfinished_run_is_not_resumed_on_other_inputs(start, tmp_path):
    path = tmp_path / "input"
    path.write_text("one")

    def fail(cfg, rundir):
        rundir.record(file_input("file", path, name="input"))
        raise ValueError("Expected luck, got none")

    with pytest.raises(ValueError, match="luck"):
        start(fail)
    path.write_text("two")
    with pytest.raises(ValueError, match="luck"):
        start(fail)  # there is nothing to go on from
    start.rundir.checkpoints_dir.mkdir()
    with pytest.raises(ValueError, match="luck"):
        start(fail)
    path.write_text("three")
    with pytest.raises(StaleRunError, match=r"input .*changed"):
        start(never)


def test_input_that_is_gone_is_said_and_the_run_stays(start, tmp_path, caplog):
    path = tmp_path / "input"
    path.write_text("one")
    start(lambda cfg, rundir: rundir.record(file_input("file", path, name="input")) or {})
    path.unlink()
    with caplog.at_level("WARNING"):
        start(never)
    assert "file input" in caplog.text


@pytest.mark.parametrize("name", ["manifest.json", "config.yaml", "results.json", "inputs.csv"])
@pytest.mark.parametrize("content", ["", '{"status": ', "a: [", "\x00\x00"])
@pytest.mark.slow
def test_damaged_state_file_is_one_sentence_and_overwrite_mends_it(start, tmp_path, name, content):
    path = tmp_path / "input"
    path.touch()

    def work(cfg, rundir):
        rundir.record(file_input("file", path, name="input"))
        return {"x": 1}

    start(work)
    (start.rundir.path / name).write_text(content)
    with pytest.raises(ValueError, match=f"{name}.*overwrite=true") as caught:
        start(never)
    assert "\n" not in str(caught.value).strip()
    assert start(work, "overwrite=true") == {"x": 1}
    assert start(never) == {"x": 1}


def test_a_start_that_waited_takes_what_another_process_finished_meanwhile(start, monkeypatch):
    """Between the first look and the lock another process finishes the run."""
    started = []

    @contextmanager
    def lock_after_another(path):
        if not started:
            started.append(True)
            start(lambda cfg, rundir: {"x": 1})
            monkeypatch.setattr(config, "task_function", lambda _: never)
        with lock_run(path):
            yield

    monkeypatch.setattr(runner, "lock_run", lock_after_another)
    assert start(never) == {"x": 1}


def test_missing_upstream_names_the_command(start):
    with pytest.raises(
        FileNotFoundError, match=r"finished train_sae run at .*Make it with: python -m src\.run .*task=train_sae"
    ):
        start(lambda cfg, rundir: rundir.upstream("train_sae"), task="encode")
