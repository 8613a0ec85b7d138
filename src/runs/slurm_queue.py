"""What SLURM says of jobs, where there is one: of those that wait or run, and of those that ended."""

import getpass
import logging
import re
import shutil
import subprocess
from collections.abc import Collection
from dataclasses import dataclass

_LOGGER = logging.getLogger(__name__)
_TIMEOUT = 30  # seconds; a controller that is restarting answers late or not at all
WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "CONFIGURING", "RESV_DEL_HOLD")


@dataclass(frozen=True)
class QueuedJob:
    """A job in SLURM's queue: its state, e.g. PENDING or RUNNING, and why it waits."""

    state: str
    reason: str

    @property
    def waits(self) -> bool:
        """Whether it waits to start."""
        return self.state in WAITING


def read_queue() -> dict[str, QueuedJob] | None:
    """Returns this user's jobs that wait or run, under their ids: `12`, and `12_3` for a job of an array.

    Jobs of arrays are also there under the plain id that SLURM_JOB_ID has. None where SLURM does not answer.
    """
    said = _ask("squeue", "--noheader", "--array", "--user", getpass.getuser(), "--format", "%i|%A|%T|%r")
    if said is None:
        return None
    jobs = {}
    for line in said.splitlines():
        job_id, raw_id, state, reason = (field.strip() for field in line.split("|", 3))
        job = QueuedJob(state, "" if reason == "None" else reason)
        jobs[job_id] = job
        if not job.waits or raw_id != job_id.partition("_")[0]:  # what has not begun of an array has the array's id
            jobs[raw_id] = job
    return jobs


def ended_states(job_ids: Collection[str]) -> dict[str, str]:
    """Returns how jobs ended, e.g. COMPLETED, TIMEOUT or OUT_OF_MEMORY, as far as SLURM still knows.

    Sites without accounting forget jobs some minutes after their end.
    """
    if not job_ids:
        return {}
    said = _ask("sacct", "-n", "-X", "-P", "-D", "-o", "JobID,JobIDRaw,State", "-j", ",".join(sorted(job_ids)))
    if said is not None:
        rows = [line.split("|") for line in said.splitlines() if line.count("|") == 2]
        found = {name: state for row in rows for name, state in ((row[0], row[2]), (row[1], row[2]))}
    else:
        found = {}
        for job_id in job_ids:
            match = re.search(r"JobState=(\S+)", _ask("scontrol", "show", "job", job_id, "--oneliner") or "")
            if match is not None:
                found[job_id] = match[1]
    return {job_id: found[job_id] for job_id in job_ids if job_id in found}


def _ask(*command: str) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT)
    except subprocess.TimeoutExpired:
        _LOGGER.warning("%s did not answer within %d s.", command[0], _TIMEOUT)
        return None
    if done.returncode != 0:
        _LOGGER.debug("%s: %s", command[0], done.stderr.strip())
        return None
    return done.stdout
