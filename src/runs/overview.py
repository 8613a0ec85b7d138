"""Every run and every job below a folder of runs, with its state and what to do about it."""

import json
import shlex
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from src.file_lock import read_lock
from src.files import read_yaml
from src.runs import state
from src.runs.jobs import LOCK, JobRow, read_jobs
from src.runs.scan import find_runs, last_line, last_metrics, newest_write
from src.runs.slurm_queue import QueuedJob, ended_states, read_queue

_SHOWN_METRICS = ("val/explained_variance", "val/auroc", "val/loss", "train/loss")
_OF_SLURM = ("srun: ", "slurmstepd: ")  # lines that follow a program's own last one
_GOES_ON = (state.INTERRUPTED, state.LOST, state.FAILED)


@dataclass(frozen=True)
class RunView:
    """A run as `task=status` shows it.

    Attributes:
        path: its directory.
        state: one of `src.runs.state.STATES`.
        progress: how far it is: epoch and step.
        metric: its last metric.
        heartbeat: seconds since its last sign of life; None where nobody is at work.
        slurm: id and state of its SLURM job; empty without one.
        error: why it is not finished, in a line.
        command: what makes it go on; empty where nothing need be typed.
    """

    path: Path
    state: str
    progress: str = ""
    metric: str = ""
    heartbeat: float | None = None
    slurm: str = ""
    error: str = ""
    command: str = ""


def read_overview(runs: Path, folders: Iterable[Path], stalled_minutes: float, schema_version: int) -> list[RunView]:
    """Returns every run and every job that has not begun one, by path.

    Args:
        runs: the folder of runs.
        folders: those below it to look at.
        stalled_minutes: after so many without a word a run is called stalled.
        schema_version: of the manifests that this program writes.
    """
    folders = [folder.absolute() for folder in folders]
    rows = {row.run_dir: row for row in read_jobs(runs) if any(row.run_dir.is_relative_to(one) for one in folders)}
    paths = list(dict.fromkeys(path for folder in folders for path in find_runs(folder)))
    manifests = {path: _read_manifest(path) for path in paths}
    ids = {path: _job_id(manifests.get(path), rows.get(path)) for path in [*paths, *rows]}
    queue = (read_queue() or {}) if any(ids.values()) else {}
    views = {}
    for path in sorted({*paths, *rows}):
        job = queue.get(ids[path]) if ids[path] else None
        if path in manifests:
            views[path] = _view_of_run(path, manifests[path], job, ids[path], stalled_minutes * 60, schema_version)
        else:
            views[path] = _view_of_job(rows[path], job)
    troubled = {path: ids[path] for path, view in views.items() if view.state in _GOES_ON and ids[path]}
    ended = ended_states(set(troubled.values()))
    for path, job_id in troubled.items():
        if job_id in ended:
            views[path] = replace(views[path], slurm=f"{job_id} {ended[job_id].lower()}")
    return list(views.values())


def _view_of_run(
    path: Path,
    manifest: dict[str, Any] | str | None,
    job: QueuedJob | None,
    job_id: str,
    stalled_seconds: float,
    schema_version: int,
) -> RunView:
    lock, written = read_lock(path / ".lock"), newest_write(path)
    if isinstance(manifest, str):  # damaged
        return RunView(path, state.FAILED, error=manifest, command=_command(path, overwrite=True))
    idle = None if written is None else time.time() - written
    found = state.state_of_run(manifest, lock, job, idle, stalled_seconds)
    metrics = last_metrics(path / "metrics.csv")
    words = [f"{key} {float(metrics[key]):g}" for key in ("epoch", "step") if key in metrics]
    shown = next((key for key in _SHOWN_METRICS if key in metrics), None)
    values = manifest or {}
    error = " ".join(str(values.get("error") or "").split())
    if found == state.LOST:
        said = last_line(path / "run.log")
        error = f"its process is gone without a word{f'; the last one: {said}' if said else ''}"
    elif found == state.STALLED and idle is not None:
        error = f"nothing written for {idle / 60:.0f} minutes"
    elif found == state.QUEUED and job is not None and job.reason:
        error = f"waits: {job.reason}"
    is_old = bool(values) and values.get("schema_version") != schema_version
    if is_old:
        versions = f"schema {values.get('schema_version')}, now {schema_version}"
        error = f"made by another version of this program ({versions}); {error}".rstrip("; ")
    return RunView(
        path,
        found,
        ", ".join(words),
        f"{shown} {float(metrics[shown]):.4g}" if shown else "",
        lock.age if lock is not None and found in (state.RUNNING, state.STALLED) else None,
        _slurm(job_id, job),
        error if found != state.FINISHED or is_old else "",
        _command(path, overwrite=is_old) if found in _GOES_ON else "",
    )


def _view_of_job(row: JobRow, job: QueuedJob | None) -> RunView:
    launcher = None if row.job_id else read_lock(row.sweep / LOCK)
    found = state.state_of_job(job, launcher is not None and launcher.is_alive)
    if found != state.FAILED:
        reason = f"waits: {job.reason}" if job is not None and job.waits and job.reason else ""
        return RunView(row.run_dir, found, slurm=_slurm(row.job_id, job), error=reason)
    said = last_line(row.log, _OF_SLURM)
    error = f"its job ended before the run began: {said or f'nothing in {row.log}'}"
    return RunView(row.run_dir, found, slurm=row.job_id, error=error, command=row.command)


def _read_manifest(path: Path) -> dict[str, Any] | str | None:
    """Returns a manifest, None when there is none, a sentence when it cannot be read."""
    try:
        manifest = json.loads((path / "manifest.json").read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        manifest = None
    if not isinstance(manifest, dict) or "status" not in manifest:
        return "its manifest.json cannot be read; it was cut short or edited"
    return manifest


def _job_id(manifest: dict[str, Any] | str | None, row: JobRow | None) -> str:
    if row is not None and row.job_id:
        return row.job_id
    slurm: Mapping[str, str] = (manifest.get("slurm") or {}) if isinstance(manifest, dict) else {}
    if "SLURM_ARRAY_TASK_ID" in slurm:
        return f"{slurm['SLURM_ARRAY_JOB_ID']}_{slurm['SLURM_ARRAY_TASK_ID']}"
    return slurm.get("SLURM_JOB_ID", "")


def _slurm(job_id: str, job: QueuedJob | None) -> str:
    return f"{job_id} {job.state.lower()}" if job is not None else ""


def _command(path: Path, overwrite: bool) -> str:
    """Returns the command that the run was started with, without what would start it over or what a launcher added."""
    try:
        overrides = read_yaml(path / ".hydra" / "overrides.yaml")
    except (OSError, ValueError):
        return ""
    texts = [str(one) for one in overrides or []]
    typed = [one for one in texts if one.lower() != "overwrite=true" and not one.startswith("cluster.")]
    return shlex.join(["python", "-m", "src.run", *typed, *(["overwrite=true"] if overwrite else [])])
