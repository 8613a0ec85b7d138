"""The command: `python -m src.run exp=<preset> task=<task> [key=value ...]`, one run in one directory."""

import errno
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
from src.interrupts import Interrupted, describe, interruptible
from src.runs.execution import execute
from src.runs.lock import LiveRunError

_LOGGER = logging.getLogger(__name__)

config.register_resolvers()
# Lightning's remarks on devices and add-ons are not this program's; its warnings are. Of those, one is between it and
# newer torch versions and says nothing to a user.
logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\)")
# It holds what a run resumes from.
warnings.filterwarnings("ignore", message=r"Checkpoint directory .* exists and is not empty")


# Of a folder for runs: read-only, or a file in its place.
_NO_PLACE = (errno.EROFS, errno.EACCES, errno.ENOTDIR, errno.EEXIST)
# What a user can mend: a sentence and no stack.
_MISTAKES = (ValueError, OSError, LiveRunError, HydraException, OmegaConfBaseException)


@hydra.main(config_path="../conf", config_name="config", version_base="1.3")
def main(cfg: Any) -> float | None:
    """Executes the run and returns the result that `optimize` names, for sweepers."""
    try:
        return _optimized(execute(config.take(cfg, HydraConfig.get()), config.hydra_overrides()), cfg.optimize)
    except _MISTAKES as error:
        # A user's mistake needs a sentence and no stack. In a sweep Hydra goes on with the other jobs, and prints what
        # an exception of this kind says.
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            raise CompactHydraException(str(error)) from error
        _fail(error)
    except SystemExit as stop:  # Lightning answers SIGTERM with a code that says all is well
        if isinstance(stop, Interrupted):
            raise
        sys.exit(stop.code or 128 + signal.SIGTERM)


def _optimized(results: dict[str, float], key: str | None) -> float | None:
    if key is not None and key not in results:
        raise ValueError(f"Expected optimize to be a result of the task ({', '.join(results)}), got {key!r}.")
    return None if key is None else results[key]


def start() -> None:
    """Runs the command; also what Hydra meets before the run, or in a sweep, is a sentence where a user can mend it."""
    wants_stack = "HYDRA_FULL_ERROR" in os.environ
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands errors on instead of printing them
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
    text = str(error)
    if isinstance(error, OSError) and error.errno in _NO_PLACE and error.filename is not None:
        text = f"Expected to be able to write {error.filename}, got: {error.strerror}. Give e.g. paths.runs=<folder>."
    elif isinstance(error, OSError) and error.filename is None and error.strerror:
        text = error.strerror  # ours, without a number in front
    elif isinstance(error, HydraException) and error.__cause__ is not None:
        text += f"\n{error.__cause__}"
    _LOGGER.error("%s", text)
    sys.exit(1)


if __name__ == "__main__":
    start()
