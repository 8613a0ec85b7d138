import json
import multiprocessing
import os
import time

import pytest

from src.runs.lock import LiveRunError, lock_run


def test_second_holder_is_refused_and_the_lock_goes_at_the_end(tmp_path):
    path = tmp_path / "run" / ".lock"
    with lock_run(path):
        with pytest.raises(LiveRunError, match=rf"process {os.getpid()} on"), lock_run(path):
            pass
        assert path.exists()
    assert list(path.parent.iterdir()) == []


def _hold_and_die(path):
    with lock_run(path):
        os._exit(9)


def test_lock_of_a_killed_process_is_taken_over(tmp_path):
    path = tmp_path / ".lock"
    process = multiprocessing.get_context("spawn").Process(target=_hold_and_die, args=(path,))
    process.start()
    process.join()
    assert path.exists()
    with lock_run(path):
        assert json.loads(path.read_text())["pid"] == os.getpid()


def test_process_id_used_again_is_not_the_holder(tmp_path):
    path = tmp_path / ".lock"
    with lock_run(path):
        holder = json.loads(path.read_text())
    path.write_text(json.dumps(holder | {"process_started": "1"}))
    with lock_run(path):
        pass


def test_holder_on_another_host_lives_as_long_as_its_heart_beats(tmp_path):
    path = tmp_path / ".lock"
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "process_started": "1", "slurm_job": "7", "since": 0}))
    with pytest.raises(LiveRunError, match="SLURM job 7"), lock_run(path):
        pass
    os.utime(path, (time.time() - 3600,) * 2)
    with lock_run(path):
        pass
