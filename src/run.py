"""The command: `python -m src.run exp=<preset> task=<task> [key=value ...]`, one run in one directory."""

import logging
import os
import signal
import sys
import warnings
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException, HydraException
from hydra.types import RunMode
from omegaconf.errors import OmegaConfBaseException

from src import config
from src.interrupts import Interrupted, describe, interrupted_as, interruptible
from src.launching import launcher
from src.memory import keep_freed_memory
from src.mistakes import describe_mistake
from src.runs.execution import execute, optimized
from src.runs.lock import LiveRunError

_LOGGER = logging.getLogger(__name__)
_MISTAKES = (ValueError, OSError, LiveRunError, HydraException, OmegaConfBaseException)

config.register_resolvers()
launcher.register()
# Lightning's remarks on devices and add-ons are not this program's; its warnings are. Of those, one is between it and
# newer torch versions and says nothing to a user, one is of what a run resumes from, and one asks for srun wherever
# SLURM is installed.
# Importing it, which happens later, sets the level of its own root logger, not of this one.
logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
warnings.filterwarnings(
    "ignore",
    message=r".*isinstance\(treespec, LeafSpec\)|Checkpoint directory .* exists and is not|The `srun` command is avail",
)
# In a SLURM job Lightning would take SLURM's tasks for processes of its own, and put the job back into the queue as our
# launcher does. A job of this name it leaves alone (its SLURMEnvironment.detect).
if "SLURM_JOB_NAME" in os.environ:
    os.environ["SLURM_JOB_NAME"] = "bash"


@hydra.main(config_path="../conf", config_name="config", version_base="1.3")
def main(cfg: Any) -> float | None:
    """Executes the run and returns the result that `optimize` names, for sweepers."""
    try:
        return optimized(execute(config.take(cfg, HydraConfig.get()), config.hydra_overrides()), cfg.optimize)
    except _MISTAKES as error:
        # In a sweep Hydra goes on with the other jobs, and prints what an exception of this kind says.
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            raise CompactHydraException(str(error)) from error
        _fail(error)
    except SystemExit as stop:
        if stop.code is not None:
            raise
        raise interrupted_as(stop, signal.SIGTERM) from stop  # what Lightning makes of it where it comes first


def start() -> None:
    """Runs the command; also what Hydra meets before the run, or in a sweep, is a sentence where a user can mend it."""
    wants_stack = "HYDRA_FULL_ERROR" in os.environ
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands errors on instead of printing them
    keep_freed_memory()
    with interruptible():
        try:
            main()
        except Interrupted as interruption:
            _LOGGER.warning("%s", describe(interruption, sys.argv[1:]))
            raise
        except _MISTAKES as error:
            if wants_stack:
                raise
            _fail(error)


def _fail(error: Exception) -> NoReturn:
    cause = f"\n{error.__cause__}" if isinstance(error, HydraException) and error.__cause__ is not None else ""
    _LOGGER.error("%s", describe_mistake(error) + cause)
    sys.exit(1)


if __name__ == "__main__":
    start()
