"""The command: `python -m src.run exp=<preset> task=<task> [key=value ...]`, one run in one directory."""

import logging
import signal
import sys
import warnings
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from hydra.types import RunMode

from src import config
from src.run_lock import LiveRunError
from src.runner import execute

_LOGGER = logging.getLogger(__name__)

config.register_resolvers()
# Lightning's remarks on devices and add-ons are not this program's; its warnings are. Of those, one is between it and
# newer torch versions and says nothing to a user.
logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\)")
# It holds what a run resumes from.
warnings.filterwarnings("ignore", message=r"Checkpoint directory .* exists and is not empty")


@hydra.main(config_path="../conf", config_name="config", version_base="1.3")
def main(cfg: Any) -> float | None:
    """Executes the run and returns the result that `optimize` names, for sweepers."""
    try:
        return _optimized(execute(cfg, config.hydra_overrides()), cfg.optimize)
    except (ValueError, OSError, LiveRunError) as error:
        # A user's mistake needs a sentence and no stack. In a sweep Hydra goes on with the other jobs, and prints what
        # an exception of this kind says.
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            raise CompactHydraException(str(error)) from error
        _LOGGER.error("%s", error)
        sys.exit(1)
    except SystemExit as stop:  # Lightning answers SIGTERM with a code that says all is well
        sys.exit(stop.code or 128 + signal.SIGTERM)


def _optimized(results: dict[str, float], key: str | None) -> float | None:
    if key is not None and key not in results:
        raise ValueError(f"Expected optimize to be a result of the task ({', '.join(results)}), got {key!r}.")
    return None if key is None else results[key]


if __name__ == "__main__":
    main()
