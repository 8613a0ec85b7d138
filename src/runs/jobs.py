"""jobs.csv: which job was started for which run directory, so that work that has not begun is known."""

import csv
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from src.files import write_atomically

SWEEPS = ".sweeps"  # below paths.runs: a folder for each launch
FILE = "jobs.csv"
LOCK = ".lock"  # of a launch, while its launcher works; of SWEEPS, while one submits
_COLUMNS = ("run_dir", "job_id", "stage", "command", "log")


@dataclass(frozen=True)
class JobRow:
    """A run directory that a job was started for.

    Attributes:
        run_dir: the directory, absolute; a job that does several runs has several rows.
        job_id: of SLURM (`12_3` for a job of an array), empty for local workers.
        stage: of the launch.
        command: what the job does.
        log: the job's own log.
        sweep: the folder of the launch.
    """

    run_dir: Path
    job_id: str
    stage: str
    command: str
    log: Path
    sweep: Path


def write_jobs(folder: Path, runs: Path, rows: Iterable[JobRow]) -> None:
    """Writes the jobs of a launch into its folder; run directories are noted below the folder of runs."""
    folder.mkdir(parents=True, exist_ok=True)
    with write_atomically(folder / FILE) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(_COLUMNS)
        for row in rows:
            run_dir = os.path.relpath(row.run_dir, runs.absolute())
            writer.writerow([run_dir, row.job_id, row.stage, row.command, row.log])


def read_jobs(runs: Path) -> list[JobRow]:
    """Returns the jobs of all launches, the oldest first.

    Args:
        runs: the folder of runs.
    """
    rows = []
    for path in sorted((runs / SWEEPS).glob(f"*/{FILE}")):
        with open(path, newline="") as file:
            for row in csv.DictReader(file):
                run_dir = Path(os.path.normpath(runs.absolute() / row["run_dir"]))
                rows.append(JobRow(run_dir, row["job_id"], row["stage"], row["command"], Path(row["log"]), path.parent))
    return rows
