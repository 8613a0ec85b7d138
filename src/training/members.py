"""Lets the members of a group keep their own logs and checkpoints, as if each had a trainer of its own."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers.logger import Logger
from torch import Tensor

from src.modules.sae_group import member_state, of_member
from src.training.checkpoints import AtomicCheckpointIO

_OPTIMIZER_STEPS = "epoch_loop.manual_optimization.optim_step_progress"


class MemberLogger:
    """A logger that takes one member's metrics and those that are no member's, and is `logger` in all else.

    Args:
        member: its number.
        logger: of its own run.
    """

    def __init__(self, member: int, logger: Logger) -> None:
        self._member, self._logger = member, logger

    def __getattr__(self, name: str) -> Any:
        """Returns the logger's own."""
        return getattr(self._logger, name)

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Logs metrics of a step, of which each member has made as many."""
        shared = {key: value for key, value in metrics.items() if not key.partition(".")[0].isdigit()}
        self._logger.log_metrics(of_member(metrics, self._member) | shared, step)


class MemberCheckpoint(ModelCheckpoint):
    """A ModelCheckpoint that looks at one member's metrics.

    Args:
        member: its number.
        **options: of ModelCheckpoint.
    """

    def __init__(self, member: int, **options: Any) -> None:
        super().__init__(**options)
        self._member = member

    @property
    def state_key(self) -> str:
        """That of a ModelCheckpoint with the member's number before it."""
        return f"{self._member}." + super().state_key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__, 1)

    def _monitor_candidates(self, trainer: lightning.Trainer) -> dict[str, Tensor]:
        candidates = super()._monitor_candidates(trainer)
        return {key: candidates[key] for key in ("epoch", "step")} | of_member(candidates, self._member)


class MemberCheckpointIO(AtomicCheckpointIO):
    """Writes the part of a group's checkpoint whose folder is written to, and reads a group's from all folders.

    A part is what a trainer of the member alone would write: either resumes from the other's files.

    Args:
        folders: of the checkpoints of each member.
        resumed: the checkpoint of each member that all go on from, at one place.
    """

    def __init__(self, folders: Sequence[Path], resumed: Sequence[Path] = ()) -> None:
        self._folders, self._resumed = list(folders), resumed

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Saves one member's part; see `AtomicCheckpointIO.save_checkpoint`."""
        part = part_of(checkpoint, self._folders.index(Path(path).parent), len(self._folders))
        super().save_checkpoint(part, path, storage_options)

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:  # noqa: ARG002
        """Loads what all members go on from; see `AtomicCheckpointIO.load_checkpoint`."""
        load = super().load_checkpoint
        return join([load(one, *args, **kwargs) for one in self._resumed])


def part_of(checkpoint: dict[str, Any], number: int, n_members: int) -> dict[str, Any]:
    """Returns a member's part of a group's checkpoint."""
    part = _with_steps(checkpoint, checkpoint["global_step"] // n_members)
    return part | member_state(checkpoint, number) | {"callbacks": of_member(checkpoint["callbacks"], number)}


def join(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns the checkpoint of a group whose members stand at one place, made of their own."""
    whole = _with_steps(parts[0], parts[0]["global_step"] * len(parts))
    for key in ("state_dict", "callbacks"):
        whole[key] = {f"{i}.{name}": value for i, part in enumerate(parts) for name, value in part[key].items()}
    return whole | {"optimizer_states": [state for part in parts for state in part["optimizer_states"]]}


def _with_steps(checkpoint: dict[str, Any], n_steps: int) -> dict[str, Any]:
    """Returns a copy that says how many steps all its optimizers have made together."""
    loops = checkpoint["loops"]
    count = {"ready": n_steps, "completed": n_steps}
    fit_loop = loops["fit_loop"] | {_OPTIMIZER_STEPS: {"total": count, "current": count}}
    return checkpoint | {"global_step": n_steps, "loops": loops | {"fit_loop": fit_loop}}
