"""States of runs from what a manifest, a lock, SLURM and the clock say."""

import pytest

from src.file_lock import Holder, LockReading
from src.runs.slurm_queue import QueuedJob
from src.runs.state import state_of_job, state_of_run

HOLDER = Holder("node", 1, "1", None, 0.0)
PENDING, WORKING = QueuedJob("PENDING", "Resources"), QueuedJob("RUNNING", "")


def lock(is_alive=True, is_here=True, age=3.0):
    return LockReading(HOLDER, is_alive, is_here, age)


@pytest.mark.parametrize(
    ("status", "held", "job", "idle", "expected"),
    [
        ("completed", None, None, 9e9, "finished"),
        ("failed", None, None, 9.0, "failed"),
        ("interrupted", None, None, 9.0, "interrupted"),
        ("interrupted", None, PENDING, 9.0, "queued"),  # put back into the queue
        ("failed", None, PENDING, 9.0, "queued"),  # submitted again
        ("running", lock(), None, 9.0, "running"),
        ("running", lock(), WORKING, 9.0, "running"),
        ("running", lock(), None, 2000.0, "stalled"),  # alive, but writes nothing
        ("running", lock(age=90.0), None, 9.0, "stalled"),  # suspended
        ("running", lock(is_alive=False), None, 9.0, "lost"),  # kill -9 on this machine, at once
        ("running", None, None, 9.0, "lost"),
        ("running", lock(is_here=False), None, 9.0, "running"),
        ("running", lock(is_here=False, age=61.0), None, 9.0, "lost"),  # elsewhere: within a minute of its last sign
        ("running", lock(is_here=False, age=61.0), WORKING, 9.0, "stalled"),  # SLURM still has it
        ("running", lock(is_alive=False, is_here=False, age=999.0), WORKING, 9.0, "stalled"),
        ("running", lock(is_alive=False), PENDING, 9.0, "queued"),  # killed and put back
        (None, lock(), None, None, "running"),
        (None, None, WORKING, None, "running"),
        (None, None, PENDING, None, "queued"),
    ],
)
def test_state_of_a_run(status, held, job, idle, expected):
    manifest = None if status is None else {"status": status}
    assert state_of_run(manifest, held, job, idle, stalled_seconds=1800.0) == expected


@pytest.mark.parametrize(
    ("job", "is_worker_waiting", "expected"),
    [(PENDING, False, "queued"), (WORKING, False, "running"), (None, True, "queued"), (None, False, "failed")],
)
def test_state_of_a_job_that_has_begun_nothing(job, is_worker_waiting, expected):
    assert state_of_job(job, is_worker_waiting) == expected
