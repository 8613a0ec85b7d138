"""What a multirun has left to do, in stages: shared work, sweeps on one stream, the runs themselves, summaries."""

import json
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from src import config
from src.launching.busy import BusyRuns
from src.launching.one_pass import join_grids
from src.runs.execution import is_up_to_date
from src.runs.identity import run_path
from src.runs.lineage import StaleRunError
from src.tasks.pipeline import why_skipped


@dataclass(frozen=True)
class Job:
    """One job of a multirun.

    Attributes:
        overrides: what a user would type for it alone.
        cfg: its resolved configuration.
    """

    overrides: tuple[str, ...]
    cfg: Any

    @property
    def task(self) -> str:
        """Its task."""
        return self.cfg.task.name

    @cached_property
    def path(self) -> Path:
        """The directory of its run."""
        return run_path(self.cfg, self.cfg.task.name)

    def typed(self, *overrides: str) -> tuple[str, ...]:
        """Returns the overrides with others for the same keys."""
        keys = {override.partition("=")[0] for override in overrides}
        return (*(one for one in self.overrides if one.partition("=")[0] not in keys), *overrides)

    def as_task(self, task: str) -> "Job":
        """Returns the job with another task."""
        return self if task == self.task else Job(self.typed(f"task={task}"), config.with_task(self.cfg, task))


@dataclass(frozen=True)
class Command:
    """What one process does: `python -m src.run <overrides>`, and the run directories that it writes."""

    overrides: tuple[str, ...]
    run_dirs: tuple[Path, ...]


@dataclass(frozen=True)
class Stage:
    """Commands that may run at the same time, after those of the stage before.

    Attributes:
        name: for people.
        commands: at least one.
        takes_gpus: whether they get `cluster.gpus`.
        needs_success: whether they need that all before them succeeded, or only that it has ended.
        waits_for: ids of SLURM jobs of other launches that they need as well.
    """

    name: str
    commands: tuple[Command, ...]
    takes_gpus: bool = False
    needs_success: bool = True
    waits_for: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """What is to be done, and what is not.

    Attributes:
        stages: in order; none when nothing is left.
        finished: runs that are finished and up to date.
        busy: runs that another process is at or that are queued, with who has them.
        waits_for: ids of queued SLURM jobs of other launches whose work the first stage needs.
        remarks: sentences for the user.
    """

    stages: tuple[Stage, ...]
    finished: tuple[Path, ...]
    busy: Mapping[Path, str]
    waits_for: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


def make_plan(jobs: Sequence[Job], busy: BusyRuns, cluster: Mapping[str, Any]) -> Plan:
    """Plans the jobs of a multirun; starts nothing.

    Args:
        jobs: of the multirun, in order.
        busy: what other processes are at.
        cluster: the group `cluster`.

    Raises:
        ValueError: when a run is out of date, or a configuration cannot work; the latter is looked at for runs that are
            not finished.
    """
    jobs = list({job.path: job for job in jobs}.values())  # what folds share is one run
    finished = [job for job in jobs if is_up_to_date(job.cfg, job.overrides)]
    undone = [job for job in jobs if not _is_among(job, finished)]
    busy_jobs = [(job, who) for job in undone if (who := busy.of(job.path)) is not None]
    at_work = {job.path: who.text for job, who in busy_jobs}
    left = [job for job in undone if job.path not in at_work]
    for job in _distinct_settings(left):
        config.check_start(job.cfg)
    stages: list[Stage] = []
    remarks: list[str] = []
    order = [spec.name for spec in config.tasks().steps]
    tasks = sorted({job.task for job in jobs}, key=lambda task: order.index(task) if task in order else -1)
    waits_for: list[str] = []
    for number, task in enumerate(tasks):
        of_task = [job for job in left if job.task == task]
        if task == "pipeline":
            before, ids = _shared_stages(of_task, busy, cluster["embed_parts"])
            sweeps, _, said = _sweeps(of_task, [], cluster["one_pass"])
            stages += [*before, *_stage("train_sae_sweep", sweeps, takes_gpus=True)]
            steps = _steps(_names("fold"))
            folds = [Command(job.typed(steps), (job.path,)) for job in of_task]
            # A fold trains by itself what a sweep has left undone.
            stages += _stage("pipeline", folds, takes_gpus=True, needs_success=not sweeps)
            stages += _gathering_stage([job for job in jobs if job.task == task], of_task, at_work)
            waits_for += ids
        else:
            can_join = cluster["one_pass"] and task == "train_sae"
            sweeps, alone, said = _sweeps(of_task, [job for job in finished if job.task == task], can_join)
            singles = [Command(job.overrides, (job.path,)) for job in alone]
            takes_gpus = config.tasks()[task].scope == "fold" or task == "embed"
            ids = dict.fromkeys(who.job_id for job, who in busy_jobs if who.job_id and job.task in tasks[:number])
            stages += [replace(stage, waits_for=tuple(ids)) for stage in _stage(task, [*sweeps, *singles], takes_gpus)]
        remarks += said
    paths = tuple(job.path for job in finished)
    return Plan(tuple(stages), paths, at_work, tuple(dict.fromkeys(waits_for)), tuple(remarks))


def _stage(name: str, commands: Sequence[Command], takes_gpus: bool = False, needs_success: bool = True) -> list[Stage]:
    return [Stage(name, tuple(commands), takes_gpus, needs_success)] if commands else []


def _sweeps(
    left: Sequence[Job], finished: Sequence[Job], can_join: bool
) -> tuple[list[Command], Sequence[Job], list[str]]:
    """Returns the sweeps on one stream that train the SAEs of jobs, the jobs in none of them, and what to say of it."""
    if not can_join:
        return [], left, []
    trainings = [job.as_task("train_sae") for job in left]
    undone = [one for one, job in zip(trainings, left, strict=True) if job.task == "train_sae" or not _is_done(one)]
    grids, alone = join_grids(undone, finished)
    commands = [Command(grid.overrides, (grid.path, *(job.path for job in grid.jobs))) for grid in grids]
    return commands, alone, [str(grid) for grid in grids]


def _shared_stages(jobs: Sequence[Job], busy: BusyRuns, n_parts: int) -> tuple[list[Stage], list[str]]:
    """Returns the stages of what all folds share, and the queued jobs of other launches that do some of it."""
    shared = _names("dataset")
    ids: list[str] = []
    prepare, embed, merge = [], [], []
    for job in _distinct(jobs, shared):
        pending = list(_pending(job, shared))
        places = {step: run_path(job.cfg, step) for step in pending}
        queued = [who.job_id for path in places.values() if (who := busy.of(path)) is not None and who.job_id]
        ids += queued
        if pending and len(queued) == len(pending):
            continue  # another launch does all of it
        if first := tuple(places[step] for step in pending if step != "embed"):
            steps = [step for step in shared if step != "embed"]
            prepare.append(Command(job.typed("task=steps", _steps(steps)), first))
        if "embed" in pending:
            one = job.typed("task=steps", _steps(["embed"]))
            if n_parts == 1:
                embed.append(Command(one, (places["embed"],)))
                continue
            for number in range(1, n_parts + 1):
                part = config.with_values(job.cfg, {"embed": {"part": f"{number}/{n_parts}"}})
                embed.append(Command((*one, f"embed.part={number}/{n_parts}"), (run_path(part, "embed"),)))
            merge.append(Command(one, (places["embed"],)))
    named = [("prepare", prepare, False), ("embed", embed, True), ("merge the parts", merge, False)]
    return [stage for name, commands, takes_gpus in named for stage in _stage(name, commands, takes_gpus)], ids


def _gathering_stage(jobs: Sequence[Job], left: Sequence[Job], at_work: Container[Path]) -> list[Stage]:
    """Returns the stage of the tasks over all folds: where folds are left, or all are finished and these are not."""
    steps = _names("name")
    again = {job.path for job in _distinct(left, steps)}
    commands = []
    for job in _distinct([*left, *(job for job in jobs if job.path in at_work), *jobs], steps):
        if job.path in at_work:
            continue  # the other launch does it after its folds
        pending = steps if job.path in again else list(_pending(job, steps))
        if pending:
            places = tuple(run_path(job.cfg, step) for step in pending)
            commands.append(Command(job.typed("task=steps", _steps(steps)), places))
    # A fold that failed is named in the summary of the others.
    return _stage("gather", commands, needs_success=False)


def _pending(job: Job, steps: Sequence[str]) -> Iterator[str]:
    """Yields the steps of the pipeline that are neither up to date nor skipped."""
    found: set[str] = set()
    for step in steps:
        one = job.as_task(step)
        is_made_again = not found.isdisjoint(config.tasks().upstream(step))
        if (is_made_again or not _is_done(one)) and not why_skipped(one.cfg, step):
            found.add(step)
            yield step


def _is_among(job: Job, jobs: Sequence[Job]) -> bool:
    return any(job is one for one in jobs)


def _is_done(job: Job) -> bool:
    """Whether a run is finished; one that is out of date, which a pipeline makes again, is not."""
    try:
        return is_up_to_date(job.cfg, job.overrides)
    except StaleRunError:
        return False


def _distinct(jobs: Sequence[Job], steps: Sequence[str]) -> list[Job]:
    """Returns the first job of each set of jobs that share the runs of some steps."""
    return list({tuple(run_path(job.cfg, step) for step in steps): job for job in reversed(jobs)}.values())[::-1]


def _distinct_settings(jobs: Sequence[Job]) -> list[Job]:
    """Returns the first job of each set of jobs that differ in fold, repeat and seed alone."""
    drawn = dict.fromkeys(("fold", "repeat", "seed"))
    return list({json.dumps(config.to_container(job.cfg) | drawn): job for job in reversed(jobs)}.values())[::-1]


def _names(scope: str) -> list[str]:
    return [spec.name for spec in config.tasks().steps if spec.scope == scope]


def _steps(names: Sequence[str]) -> str:
    return f"cluster.steps=[{','.join(names)}]"
