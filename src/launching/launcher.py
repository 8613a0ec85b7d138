"""Hydra's launcher for `-m`: the jobs in this process, in local processes, or as SLURM jobs, as `cluster` says."""

import logging
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus, configure_log, setup_globals
from hydra.errors import CompactHydraException
from hydra.plugins.launcher import Launcher as HydraLauncher
from hydra.types import HydraContext, TaskFunction

from src import config
from src.file_lock import hold_lock, wait_for_lock
from src.interrupts import keeping
from src.launching import slurm, workers
from src.launching.busy import BusyRuns
from src.launching.one_pass import join_grids
from src.launching.plan import Job, Plan, make_plan
from src.runs.execution import is_up_to_date, optimized
from src.runs.jobs import LOCK, SWEEPS
from src.runs.rundir import RunDir

_LOGGER = logging.getLogger(__name__)
# Overrides that are for the process that launches, not for its jobs.
_OF_THE_LAUNCH = ("cluster=", "cluster.", "hydra.", "hydra/")


class Launcher(HydraLauncher):
    """Launches the jobs of a multirun; which way, `cluster.kind` says.

    With `local`, they run one after the other in this process. With `workers` and `slurm` each is the command that a
    user would type for it, without `-m`, so its run directory, its results and its way to resume are the same. Runs
    that are finished, at work or queued already are left out.
    """

    __module__ = "hydra_plugins.loupe"  # Hydra takes plugins from there alone

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: Any) -> None:
        """Takes what Hydra composed for the multirun."""
        self._context, self._function, self._config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Runs or submits the jobs.

        Returns:
            What each job returned, in order, but for those that another process is at; nothing with
            `cluster.wait=false`.

        Raises:
            ValueError: when a configuration is wrong, a run is out of date, or SLURM refuses the jobs; nothing is
                submitted then.
        """
        setup_globals()
        configure_log(self._config.hydra.job_logging, self._config.hydra.verbose)
        if self._config.cluster.kind == "local":
            return self._launch_here(job_overrides, initial_job_idx)
        cluster = config.to_container(self._config.cluster)
        if cluster["kind"] == "workers" and not cluster["wait"]:
            return self._detach()
        jobs = [self._job(overrides, elsewhere=True) for overrides in job_overrides]
        if cluster["kind"] == "slurm":
            for job in jobs:
                slurm.require_gpus_for_devices(cluster, job.cfg.trainer)
        folder = Path(str(self._config.hydra.sweep.dir)).absolute()
        runs = Path(jobs[0].cfg.paths.runs)
        with ExitStack() as working:
            with wait_for_lock(runs / SWEEPS / LOCK, "launching jobs"):
                plan = make_plan(jobs, BusyRuns(runs), cluster)
                _say(plan, len(jobs))
                if plan.stages and cluster["kind"] == "slurm":
                    submitted = slurm.submit(plan, cluster, folder, runs)
                elif plan.stages:
                    working.enter_context(hold_lock(folder / LOCK))
                    workers.announce(plan, folder, runs)
            if plan.stages and cluster["kind"] == "workers":
                with keeping(lambda: "what the jobs had saved"):
                    workers.work(plan, cluster, folder)
            elif plan.stages and cluster["wait"]:
                with keeping(lambda: f"the jobs, which go on in SLURM; {slurm.how_to_stop(submitted)}"):
                    slurm.wait(submitted)
            elif plan.stages:
                return []
        return self._returned([job for job in jobs if job.path not in plan.busy])

    def _launch_here(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        basic = BasicLauncher()
        basic.setup(hydra_context=self._context, task_function=self._function, config=self._config)
        if not (self._config.cluster.one_pass and self._config.task.name == "train_sae" and len(job_overrides) > 1):
            return basic.launch(job_overrides, initial_job_idx)
        jobs = [self._job(overrides) for overrides in job_overrides]
        if any(job.task != "train_sae" for job in jobs):
            return basic.launch(job_overrides, initial_job_idx)
        done = [is_up_to_date(job.cfg, job.overrides) for job in jobs]
        finished = [job for job, is_done in zip(jobs, done, strict=True) if is_done]
        left = [job for job, is_done in zip(jobs, done, strict=True) if not is_done]
        grids, alone = join_grids(left, finished)
        _say(Plan((), tuple(job.path for job in finished), {}, remarks=tuple(map(str, grids))), len(jobs))
        if not left:
            return self._returned(jobs)
        returned = basic.launch([list(one.overrides) for one in (*grids, *alone)], initial_job_idx)
        return self._returned(jobs, [one for one in returned if one.status == JobStatus.FAILED])

    def _job(self, overrides: Sequence[str], elsewhere: bool = False) -> Job:
        composed = self._context.config_loader.load_sweep_config(self._config, list(overrides))
        HydraConfig.instance().set_config(composed)
        cfg = config.resolve(config.take(composed, composed.hydra))
        typed = tuple(override for override in overrides if not override.lstrip("+").startswith(_OF_THE_LAUNCH))
        return Job((*typed, *(_flags(composed.hydra) if elsewhere else [])), cfg)

    def _detach(self) -> list[JobReturn]:
        folder = Path(str(self._config.hydra.sweep.dir)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        typed = [argument for argument in sys.argv[1:] if not argument.startswith("cluster.wait=")]
        with open(folder / "launcher.log", "w") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "src.run", *typed, f"hydra.sweep.dir={folder}", "cluster.wait=true"],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        _LOGGER.info(
            "Process %d goes on in the background; its log: %s. How far it is: python -m src.run task=status. "
            "Stop it: kill %d",
            process.pid,
            log.name,
            process.pid,
        )
        return []

    def _returned(self, jobs: Sequence[Job], failures: Sequence[JobReturn] = ()) -> list[JobReturn]:
        """Returns what the runs of jobs left, in Hydra's form; an exception for those that are not finished."""
        returned = []
        for job in jobs:
            run = RunDir(job.path)
            one = JobReturn(overrides=job.overrides, cfg=job.cfg)
            if run.is_finished:
                one.status = JobStatus.COMPLETED
                one.return_value = optimized(run.read_results(), job.cfg.optimize)
            else:
                one.status = JobStatus.FAILED
                one.return_value = failures[0]._return_value if failures else _failure(run)
            returned.append(one)
        return returned


def register() -> None:
    """Makes the launcher known to Hydra; `hydra.launcher._target_` in conf/config.yaml names it."""
    sys.modules["hydra_plugins.loupe"] = sys.modules[__name__]  # where Hydra looks it up
    Plugins.instance().register(Launcher)


def _flags(hydra_node: Any) -> list[str]:
    """Returns the options that let a job find the same configuration files."""
    searched = [override for override in hydra_node.overrides.hydra if override.startswith("hydra.searchpath=")]
    folders = [one.path for one in hydra_node.runtime.config_sources if one.provider == "command-line"]
    return [*searched, *(f"--config-dir={Path(folder).absolute()}" for folder in folders)]


def _say(plan: Plan, n_jobs: int) -> None:
    for path in plan.finished:
        _LOGGER.info("Finished: %s", path)
    for path, who in plan.busy.items():
        _LOGGER.info("Left out: %s, because %s.", path, who)
    for remark in plan.remarks:
        _LOGGER.info("%s", remark)
    n_left = n_jobs - len(plan.finished) - len(plan.busy)
    _LOGGER.info(
        "Of %d runs %d are finished, %d are at work or queued, %d are left.",
        n_jobs,
        len(plan.finished),
        len(plan.busy),
        n_left,
    )


def _failure(run: RunDir) -> Exception:
    """Returns why a run is not finished, as far as it says itself."""
    error = (run.read_manifest() or {}).get("error")
    reason = error or "it did not begin, or was ended from outside; see its job's log"
    return CompactHydraException(f"Expected {run.path} to be finished, got this: {reason}")
