"""What other processes are at: runs that hold a lock, and runs that an earlier launch has queued."""

from dataclasses import dataclass
from pathlib import Path

from src.file_lock import read_lock
from src.runs.jobs import LOCK, read_jobs
from src.runs.slurm_queue import read_queue


@dataclass(frozen=True)
class Busy:
    """Who has a run: in words, and the SLURM job that it waits in, if any."""

    text: str
    job_id: str = ""


class BusyRuns:
    """The runs below a folder that are at work or queued, as they are at the moment of making this.

    Args:
        runs: the folder `paths.runs`.
    """

    def __init__(self, runs: Path) -> None:
        self._jobs = {row.run_dir: row for row in read_jobs(runs)}  # of several the last
        self._queue = read_queue() if any(row.job_id for row in self._jobs.values()) else None

    def of(self, path: Path) -> Busy | None:
        """Returns who has a run, None when nobody does."""
        lock = read_lock(path / ".lock")
        if lock is not None and lock.is_alive:
            return Busy(f"{lock.holder} is at work", lock.holder.slurm_job or "")
        row = self._jobs.get(path.absolute())
        if row is None:
            return None
        if row.job_id:
            queued = (self._queue or {}).get(row.job_id)
            return None if queued is None else Busy(f"SLURM job {row.job_id} is {queued.state.lower()}", row.job_id)
        launcher = read_lock(row.sweep / LOCK)
        is_alive = launcher is not None and launcher.is_alive
        return Busy(f"the workers of {launcher.holder} have it before them") if launcher and is_alive else None
