"""Submits the stages of a plan to SLURM by submitit, each after the one before, and waits for them."""

import logging
import shlex
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from src.checks.devices import n_devices
from src.launching.plan import Plan, Stage
from src.runs.jobs import FILE, JobRow, write_jobs
from src.runs.slurm_queue import ended_states, read_queue

_LOGGER = logging.getLogger(__name__)
_POLL_SECONDS = 5.0


def submit(plan: Plan, cluster: Mapping[str, Any], folder: Path, runs: Path) -> list[JobRow]:
    """Submits every stage as an array that depends on the stage before; writes jobs.csv before it returns.

    Args:
        plan: with at least one stage.
        cluster: the group `cluster`.
        folder: of the launch, for jobs.csv, logs and submitit's own files.
        runs: the folder of runs.

    Returns:
        The jobs. When a stage is refused, those of the stages before are cancelled.

    Raises:
        ValueError: when there is no SLURM, or it refuses the jobs.
        OSError: when the folder takes no more files.
    """
    if shutil.which("sbatch") is None:
        raise ValueError(
            "Expected SLURM's sbatch for cluster=slurm, got none on the path. Start from a machine that submits jobs, "
            "or give cluster=workers."
        )
    rows: list[JobRow] = []
    needed, before = list(plan.waits_for), ""
    try:
        for stage in plan.stages:
            if before and stage.needs_success:
                needed, before = [before], ""
            dependency = [f"afterok:{job_id}" for job_id in (*needed, *stage.waits_for)]
            dependency += [f"afterany:{before}"] if before else []
            job_ids, logs = _submit_stage(stage, cluster, folder / "slurm", ",".join(dependency))
            before = job_ids[0].partition("_")[0]
            for job_id, log, command in zip(job_ids, logs, stage.commands, strict=True):
                text = shlex.join(["python", "-m", "src.run", *command.overrides])
                rows += [JobRow(path.absolute(), job_id, stage.name, text, log, folder) for path in command.run_dirs]
            write_jobs(folder, runs, rows)
            gpus = f"{cluster['gpus']} GPUs each" if stage.takes_gpus and cluster["gpus"] else "no GPU"
            _LOGGER.info("Submitted %s: %s, %d jobs, %s", stage.name, before, len(job_ids), gpus)
    except BaseException:
        if rows:
            cancel = ["scancel", *sorted({row.job_id.partition("_")[0] for row in rows})]
            subprocess.run(cancel, capture_output=True, timeout=60)
            (folder / FILE).unlink(missing_ok=True)
        raise
    _LOGGER.info(
        "Logs: %s/<job>_0_log.out. Jobs and their run directories: %s.\nHow far they are: python -m src.run "
        "task=status. %s. The same command again submits what is not finished.",
        folder / "slurm",
        folder / FILE,
        how_to_stop(rows).capitalize(),
    )
    return rows


def require_gpus_for_devices(cluster: Mapping[str, Any], trainer: Mapping[str, Any]) -> None:
    """Refuses a job whose training would leave GPUs idle, or has fewer than it asks for.

    A job is one SLURM task; its training starts a process for each device, on the job's node.

    Args:
        cluster: the group `cluster`.
        trainer: the group `trainer`; `devices: auto` takes what a job has.

    Raises:
        ValueError: naming both keys.
    """
    gpus, accelerator, devices = cluster["gpus"], trainer["accelerator"], trainer["devices"]
    if not gpus or accelerator == "cpu" or devices in ("auto", "-1", -1):
        return
    if (wanted := n_devices(accelerator, devices)) != gpus:
        raise ValueError(
            f"Expected as many trainer.devices as a job has GPUs, got trainer.devices={devices} and "
            f"cluster.gpus={gpus}. Give trainer=ddp, which trains on all GPUs of a job, or cluster.gpus={wanted}."
        )


def how_to_stop(rows: Sequence[JobRow]) -> str:
    """Returns the words for a user who wants jobs to end."""
    return f"stop them with: scancel {' '.join(dict.fromkeys(row.job_id.partition('_')[0] for row in rows))}"


def wait(rows: Sequence[JobRow]) -> None:
    """Waits until SLURM has none of the jobs in its queue any more, and says how each that did not complete ended."""
    job_ids = {row.job_id for row in rows}
    seen: dict[str, str] = {}
    while True:
        queue = read_queue()
        if queue is not None:  # a controller that restarts says nothing for a while
            now = {job_id: queue[job_id].state for job_id in job_ids if job_id in queue}
            if now != seen:
                counts = {state: list(now.values()).count(state) for state in sorted(set(now.values()))}
                listed = ", ".join(f"{count} {state.lower()}" for state, count in counts.items())
                _LOGGER.info(
                    "%d of %d jobs have ended%s", len(job_ids) - len(now), len(job_ids), listed and f"; {listed}"
                )
            if not now:
                break
            seen = now
        time.sleep(_POLL_SECONDS)
    for job_id, state in sorted(ended_states(job_ids).items()):
        if state != "COMPLETED":
            log = next(row.log for row in rows if row.job_id == job_id)
            _LOGGER.warning("Job %s ended as %s; its log: %s", job_id, state, log)


def _submit_stage(
    stage: Stage, cluster: Mapping[str, Any], folder: Path, dependency: str
) -> tuple[list[str], list[Path]]:
    """Submits a stage; returns the id and the log of each command's job."""
    try:
        import submitit
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        from src.launching.job import StartRun
    except ImportError as error:
        raise ValueError(
            f"Expected submitit for cluster=slurm, got: {error}. Install it with pip install 'loupe[slurm]', or give "
            "cluster=workers."
        ) from error
    try:
        executor = submitit.SlurmExecutor(folder, cluster["max_timeouts"], python=python_of(cluster))
        executor.update_parameters(**sbatch_parameters(stage, cluster, dependency))
        jobs = executor.map_array(StartRun(), [command.overrides for command in stage.commands])
    except OSError as error:
        reason = error.strerror or str(error)
        raise ValueError(
            f"Expected to write the files of {len(stage.commands)} jobs into {folder}, got: {reason}. Make room there, "
            "or give paths.runs=<folder on a disk that has some>."
        ) from error
    except (FailedJobError, FailedSubmissionError, subprocess.CalledProcessError) as error:
        said = [line.strip() for line in str(error).splitlines() if "error" in line.lower()]
        raise ValueError(
            f"Expected SLURM to take the jobs of the stage {stage.name}, got: {said[0] if said else error}. Look at "
            "cluster.partition, account, qos, constraint and what they ask for; sinfo lists what there is."
        ) from error
    return [job.job_id for job in jobs], [job.paths.stdout for job in jobs]


def python_of(cluster: Mapping[str, Any]) -> str | None:
    """Returns the shell words that start Python in a job; None for the Python of this process."""
    if cluster["container"] is None:
        return cluster["python"]
    return shlex.join(["apptainer", "exec", "--nv", cluster["container"], cluster["python"] or "python"])


def sbatch_parameters(stage: Stage, cluster: Mapping[str, Any], dependency: str = "") -> dict[str, Any]:
    """Returns what a stage asks SLURM for, in the names of submitit's executor.

    Args:
        stage: the stage.
        cluster: the group `cluster`.
        dependency: of SLURM's, e.g. `afterok:12`.
    """
    # Since SLURM 22.05 srun no longer takes --cpus-per-task over from sbatch: the run would have one core.
    setup = ["export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK", f"export OMP_NUM_THREADS={cluster['cpus']}"]
    # A requeue after the failure of a node is what the run can live with; not all sites have it as their default.
    further: dict[str, Any] = {"requeue": True} | dict(cluster["sbatch"])
    if dependency:
        further["kill-on-invalid-dep"] = "yes"  # else jobs whose upstream failed wait for ever
    parameters = {
        "job_name": f"loupe {stage.name}",
        "partition": cluster["partition"],
        "account": cluster["account"],
        "qos": cluster["qos"],
        "constraint": cluster["constraint"],
        "time": cluster["minutes"],
        "cpus_per_task": cluster["cpus"],
        "mem": None if cluster["mem_gb"] is None else f"{round(cluster['mem_gb'] * 1024)}MB",
        "gpus_per_node": cluster["gpus"] if stage.takes_gpus and cluster["gpus"] else None,
        "ntasks_per_node": 1,
        "nodes": 1,
        "signal_delay_s": cluster["signal_seconds"],
        "array_parallelism": cluster["n_jobs"],
        "stderr_to_stdout": True,
        "dependency": dependency or None,
        "setup": [*setup, *cluster["setup"]],
        "additional_parameters": further,
    }
    return {key: value for key, value in parameters.items() if value is not None}
