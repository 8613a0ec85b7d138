"""Grids of SAEs that share their activations, joined into sweeps on one stream."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src import config
from src.runs.identity import run_path

if TYPE_CHECKING:
    from src.launching.plan import Job


@dataclass(frozen=True)
class Grid:
    """Jobs of `task=train_sae` that one `task=train_sae_sweep` does.

    Attributes:
        jobs: the jobs.
        overrides: of the sweep.
        path: the directory of the sweep's own run.
    """

    jobs: "tuple[Job, ...]"
    overrides: tuple[str, ...]
    path: Path

    def __str__(self) -> str:
        return (
            f"{len(self.jobs)} SAEs of fold {self.jobs[0].cfg.fold} share their activations and are trained together "
            "(task=train_sae_sweep; cluster.one_pass=false trains each by itself)."
        )


def join_grids(jobs: "Sequence[Job]", finished: "Sequence[Job]" = ()) -> "tuple[list[Grid], list[Job]]":
    """Joins jobs into grids where they read the same activations in the same order, and are a full grid of values.

    Args:
        jobs: of task train_sae.
        finished: others that may fill a grid up; a sweep leaves them as they are.

    Returns:
        The grids, and the jobs that are in none.
    """
    if len(jobs) < 2:
        return [], list(jobs)
    from src.tasks.train_sae_sweep import stream_values, why_alone  # with torch

    alone = [job for job in jobs if why_alone(job.cfg)]
    groups: list[tuple[Any, list[Job], list[Job]]] = []  # of one stream: what it is, jobs that are left, all jobs
    for number, job in enumerate([*jobs, *finished]):
        if why_alone(job.cfg):
            continue
        values = stream_values(job.cfg)
        group = next((group for group in groups if group[0] == values), None)
        if group is None:
            groups.append(group := (values, [], []))
        group[1].extend([job] if number < len(jobs) else [])
        group[2].append(job)
    grids = []
    for _, left, members in groups:
        full = next((one for one in (members, left) if _axes(one) is not None), None)
        if len(left) > 1 and full is not None:
            grids.append(_join(full))
        else:
            alone += left
    return grids, alone


def _axes(jobs: "Sequence[Job]") -> dict[str, list[str]] | None:
    """Returns the values of each key in which jobs differ; None when they are not all combinations of these."""
    tables = [{key: value for key, _, value in (one.partition("=") for one in job.overrides)} for job in jobs]
    if any(table.keys() != tables[0].keys() for table in tables):
        return None
    values = {key: list(dict.fromkeys(table[key] for table in tables)) for key in tables[0]}
    axes = {key: found for key, found in values.items() if len(found) > 1}
    n_combinations = 1
    for found in axes.values():
        n_combinations *= len(found)
    return axes if axes and n_combinations == len(jobs) else None


def _join(jobs: "Sequence[Job]") -> Grid:
    axes = _axes(jobs) or {}
    common = [override for override in jobs[0].overrides if override.partition("=")[0] not in (*axes, "task")]
    entries = [f"{key}={','.join(found)}" for key, found in axes.items()]
    quoted = ",".join("'" + entry.replace("\\", "\\\\").replace("'", "\\'") + "'" for entry in entries)
    overrides = (*common, "task=train_sae_sweep", f"sweep.grid=[{quoted}]")
    cfg = config.resolve(config.compose([one for one in overrides if not one.startswith(("--", "hydra."))]))
    return Grid(tuple(jobs), overrides, run_path(cfg, "train_sae_sweep"))
