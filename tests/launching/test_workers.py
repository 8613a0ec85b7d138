"""Local workers: how many at once, what each is given, and what a failure or an interruption stops."""

import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from src.file_lock import read_lock
from src.interrupts import Interrupted
from src.launching import workers
from src.launching.plan import Command, Plan, Stage

CLUSTER = {"n_jobs": 2, "threads": None, "gpu_ids": []}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder where commands, run by a script in place of Python, note what they were given and when."""
    script = tmp_path / "python"
    script.write_text(
        "#!/bin/bash\n"
        f'echo "start $3 $OMP_NUM_THREADS $CUDA_VISIBLE_DEVICES" >> {tmp_path}/log\n'
        f'[ "$3" = hangs ] && {{ echo $$ > {tmp_path}/pid; exec sleep 600; }}\n'
        "sleep 0.3\n"
        f'echo "end $3" >> {tmp_path}/log\n'
        '[ "$3" != fails ]\n'
    )
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    monkeypatch.setattr(workers, "_n_cpus", lambda: 8)
    return tmp_path


def stage(name, *words, **kwargs):
    return Stage(name, tuple(Command((word,), ()) for word in words), **kwargs)


def plan(*stages):
    return Plan(stages, (), {})


def test_commands_run_some_at_once_with_their_share_of_threads_and_gpus(place):
    cluster = CLUSTER | {"gpu_ids": [3, 5]}
    workers.work(plan(stage("first", "a", "b", "c"), stage("second", "d")), cluster, place / "launch")
    lines = [line.split() for line in (place / "log").read_text().splitlines()]
    at_once, most = 0, 0
    for word, *_ in lines:
        at_once += 1 if word == "start" else -1
        most = max(most, at_once)
    assert most == 2
    assert {line[2] for line in lines if line[0] == "start"} == {"4"}
    assert {line[3] for line in lines if line[0] == "start"} == {"3", "5"}
    assert lines[-2][:2] == ["start", "d"]
    assert len(list((place / "launch" / "workers").iterdir())) == 4


def test_what_needs_a_failed_stage_is_left_out_and_what_only_follows_it_runs(place, caplog):
    stages = [stage("first", "fails", "b"), stage("second", "fails", "c", needs_success=False), stage("third", "d")]
    workers.work(plan(*stages, stage("last", "e", needs_success=False)), CLUSTER, place / "launch")
    log = (place / "log").read_text()
    assert "end b" in log
    assert "end c" in log
    assert "start d" not in log
    assert "start e" not in log
    assert caplog.text.count("Failed: python -m src.run fails; its log: ") == 2
    assert "Left out, because of what failed before it: third, last." in caplog.text


def test_an_interruption_ends_the_workers_and_starts_no_more(place, monkeypatch):
    class InterruptedPool(ThreadPoolExecutor):
        def map(self, *arguments):
            super().map(*arguments)
            while not (place / "pid").is_file():
                time.sleep(0.01)
            raise Interrupted(15)

    monkeypatch.setattr(workers, "ThreadPoolExecutor", InterruptedPool)
    before = threading.active_count()
    started = time.monotonic()
    with pytest.raises(Interrupted):
        workers.work(plan(stage("first", "hangs", "hangs", "c", "d", "e", "f")), CLUSTER, place / "launch")
    assert time.monotonic() - started < 60
    assert "start d" not in (place / "log").read_text()
    assert threading.active_count() == before


def test_what_waits_is_written_down_first(tmp_path):
    one = Command(("fold=0",), (tmp_path / "runs" / "a",))
    workers.announce(plan(Stage("folds", (one,))), tmp_path / "runs" / ".sweeps" / "1", tmp_path / "runs")
    assert (tmp_path / "runs" / ".sweeps" / "1" / "jobs.csv").read_text().splitlines()[1].startswith("a,,folds,")
    assert read_lock(tmp_path / "nothing") is None
