"""What a run is doing, judged by its manifest, its lock, SLURM's queue and the clock."""

from collections.abc import Mapping
from typing import Any

from src.file_lock import LockReading
from src.runs.slurm_queue import QueuedJob

QUEUED, RUNNING, STALLED, INTERRUPTED, LOST, FAILED, FINISHED = (
    "queued",
    "running",
    "stalled",
    "interrupted",
    "lost",
    "failed",
    "finished",
)
STATES = (RUNNING, STALLED, QUEUED, INTERRUPTED, LOST, FAILED, FINISHED)
"""In the order in which they are shown."""
# A lock is touched every 15 seconds (`src.file_lock`): after four of them its holder is not at work.
SILENT_SECONDS = 60.0


def state_of_run(
    manifest: Mapping[str, Any] | None,
    lock: LockReading | None,
    job: QueuedJob | None,
    idle_seconds: float | None,
    stalled_seconds: float,
) -> str:
    """Returns the state of a run directory.

    - `finished`, `failed`, `interrupted` (by a signal): as its manifest says, when no job has it again.
    - `queued`: a SLURM job waits that will begin it or go on with it.
    - `running`: its process is alive and writes.
    - `stalled`: its process is alive, but gives no sign of life (suspended, or its node hangs), or has written nothing
      for long.
    - `lost`: it began and its process is gone without a word: killed, or out of memory, or its node failed.

    Args:
        manifest: of the run; None when it has none.
        lock: of the run; None when nobody holds it.
        job: the SLURM job that has the run, when it waits or runs.
        idle_seconds: since the run last wrote; None when it never did.
        stalled_seconds: how long a run may write nothing.
    """
    status = (manifest or {}).get("status")
    if status == "completed":
        return FINISHED
    if lock is not None and (lock.is_alive or (job is not None and not job.waits and not lock.is_here)):
        is_silent = lock.age > SILENT_SECONDS
        if is_silent and not lock.is_here and job is None:
            return LOST
        is_idle = idle_seconds is not None and idle_seconds > stalled_seconds
        return STALLED if is_silent or is_idle else RUNNING
    if job is not None and job.waits:
        return QUEUED
    if status in ("failed", "interrupted"):
        return status
    if status is None and job is not None:
        return RUNNING  # it has started, and not come to its lock
    return LOST


def state_of_job(job: QueuedJob | None, is_worker_waiting: bool) -> str:
    """Returns the state of a run that a job was started for and that has left nothing yet.

    Args:
        job: of SLURM, when it waits or runs.
        is_worker_waiting: whether a living launcher has it before it.
    """
    if job is None:
        return QUEUED if is_worker_waiting else FAILED
    return QUEUED if job.waits else RUNNING
