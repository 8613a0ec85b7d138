"""Folds of the small quickstart through SLURM, disturbed in three ways, compared byte for byte with serial folds.

    python -m experiments.slurm.acceptance <empty folder>

Needs root on a one-node SLURM, such as `.ci/slurm` starts. Prints what squeue, sacct and task=status
show at each moment.
"""

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from src.runs.jobs import read_jobs
from src.runs.slurm_queue import read_queue

N_FOLDS = 5
SLURM = ("cluster=slurm", "cluster.gpus=0", "cluster.cpus=1", "cluster.mem_gb=null")
RESULTS = ("sae_weights.safetensors", "metrics.csv", "results.json")


def show(title: str, *command: str) -> None:
    """Prints a command's output under a title."""
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    print(f"\n### {title}\n$ {' '.join(command[-6:])}\n{said}", flush=True)


def loupe(place: Path, *overrides: str, multirun: bool = False) -> list[str]:
    """Returns the command of the small quickstart with its data and runs in a folder."""
    places = [f"paths.data={place / 'data'}", f"paths.runs={place / 'runs'}"]
    flags = ["-m"] if multirun else []
    common = ["exp=quickstart_small", f"splits.n_folds={N_FOLDS}", "trainer=cpu", *places]
    return [sys.executable, "-m", "src.run", *flags, *common, *overrides]


def wait_for(what: Callable[[], bool], seconds: float = 1800) -> None:
    """Waits until something is true."""
    deadline = time.monotonic() + seconds
    while not what():
        if time.monotonic() > deadline:
            raise TimeoutError(f"Expected to see it within {seconds:.0f} s.")
        time.sleep(0.2)


def in_queue(job_ids: set[str]) -> bool:
    """Whether SLURM has one of the jobs, or does not say."""
    queue = read_queue()
    return queue is None or not queue.keys().isdisjoint(job_ids)


def results_of(runs: Path) -> dict[str, bytes]:
    """Returns weights and tables of all runs but those that name places and times."""
    paths = [path for path in runs.rglob("*") if path.name in RESULTS or path.parent.name == "analysis"]
    found = {path.relative_to(runs).as_posix(): path.read_bytes() for path in paths if path.is_file()}
    return {name: content for name, content in found.items() if not re.search(r"/(pipeline|report)/", name)}


def main() -> None:
    """Runs the folds both ways and compares them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder.absolute()
    os.environ["OMP_NUM_THREADS"] = "1"
    serial, parallel = folder / "serial", folder / "parallel"
    folds = (f"fold=range({N_FOLDS})", "task=pipeline")
    subprocess.run(loupe(serial, *folds, multirun=True), check=True, stdout=subprocess.DEVNULL)

    node = subprocess.run(["sinfo", "-h", "-N", "-o", "%N"], capture_output=True, text=True, check=True).stdout.strip()
    status = loupe(parallel, "task=status")
    subprocess.run(["scontrol", "update", f"nodename={node}", "state=drain", "reason=acceptance"], check=True)
    show("submitted to a drained node", *loupe(parallel, *folds, *SLURM, "cluster.wait=false", multirun=True))
    runs = parallel / "runs"
    ids = {int(row.job_id.partition("_")[2]): row.job_id for row in read_jobs(runs) if row.stage == "pipeline"}
    dirs = {int(row.job_id.partition("_")[2]): row.run_dir for row in read_jobs(runs) if row.stage == "pipeline"}
    show("squeue, drained", "squeue", "-o", "%.10i %.16j %.10T %.20E %R")
    show("status, drained", *status)
    subprocess.run(["scontrol", "update", f"nodename={node}", "state=resume"], check=True)

    last = {fold: path.parent / "train_sae" / "checkpoints" / "last.ckpt" for fold, path in dirs.items()}
    wait_for(last[0].is_file)
    subprocess.run(["scontrol", "requeue", ids[0]], check=True)
    time.sleep(3)
    show("squeue, one requeued in the middle of training", "squeue", "-o", "%.10i %.16j %.10T %.20E %R")
    show("status, one requeued", *status)
    wait_for(last[1].is_file)
    subprocess.run(["scancel", ids[1]], check=True)
    wait_for(lambda: not in_queue({ids[1]}))
    show("status, one cancelled", *status)
    show("the same command again", *loupe(parallel, *folds, *SLURM, multirun=True))
    wait_for(lambda: not in_queue({row.job_id for row in read_jobs(runs)}))
    show("the same command once more", *loupe(parallel, *folds, *SLURM, multirun=True))
    jobs = ",".join(sorted({row.job_id.partition("_")[0] for row in read_jobs(runs)}))
    show("sacct", "sacct", "-X", "-D", "-j", jobs, "-o", "JobID%8,JobName%16,State%24,ExitCode,Start,End")
    show("status at the end", *status)

    expected, found = results_of(serial / "runs"), results_of(runs)
    different = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    print(
        f"{len(expected)} files of serial folds, {len(found)} of those through SLURM; {len(different)} differ: "
        f"{', '.join(different) or 'none'}"
    )


if __name__ == "__main__":
    main()
