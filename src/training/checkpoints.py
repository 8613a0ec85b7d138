"""Checkpoints that a kill cannot leave half written."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple
from zipfile import is_zipfile

import lightning
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch.utils._pytree import tree_leaves

from src.files import write_atomically


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint aside and renames it: a reader finds the old one or the new one, whole.

    Lightning's own writes in place, so that a run killed while it saves cannot be resumed.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Saves a checkpoint.

        Args:
            checkpoint: what Lightning collected.
            path: a local file.
            storage_options: of Lightning's interface; none are taken.

        Raises:
            TypeError: when storage options are given.
            OSError: when the disk is full; the old checkpoint stays.
        """
        if storage_options is not None:
            raise TypeError(f"Expected no storage options, got {storage_options!r}.")
        tensors = {leaf.data_ptr(): leaf.nbytes for leaf in tree_leaves(checkpoint) if isinstance(leaf, torch.Tensor)}
        n_bytes = sum(tensors.values())
        with write_atomically(Path(path), n_bytes, durable=True) as temporary:
            torch.save(checkpoint, temporary)

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Loads a checkpoint.

        Raises:
            ValueError: when the file is no whole checkpoint: what to do about it.
        """
        with _telling_cut(path):
            return super().load_checkpoint(path, *args, **kwargs)


class StepCheckpoints(lightning.Callback):
    """Saves `step_<n>.ckpt` after stated optimizer steps; blocks of batches must end there.

    Args:
        folders: where to; several for the members of a group, which make as many steps each.
        steps: the steps.
    """

    def __init__(self, folders: Sequence[Path], steps: Sequence[int]) -> None:
        self._folders, self._steps = folders, set(steps)

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        """Saves where training stands at one of the steps."""
        step = trainer.global_step // len(self._folders)
        if step in self._steps:
            self._steps.remove(step)  # the last blocks of an epoch may be empty
            for folder in self._folders:
                trainer.save_checkpoint(folder / f"step_{step}.ckpt")


class Position(NamedTuple):
    """How far the checkpoint at `path` got: optimizer steps, and whether it lies inside an epoch."""

    step: int
    is_inside: bool
    path: Path


def newest_checkpoint(folder: Path) -> Position | None:
    """Returns the checkpoint that training is to go on from: the last one, or one by step inside a later epoch.

    One by step at the end of an epoch is from before the epoch's validation, which would be left out.
    """
    found = [_position(path) for path in sorted(folder.glob("*.ckpt")) if path.stem != "best"]
    return max((one for one in found if one.path.stem == "last" or one.is_inside), default=None)


def describe_checkpoint(folder: Path) -> str:
    """Says how far the checkpoints in a folder got, for a user; an empty text when there are none."""
    newest = newest_checkpoint(folder)
    return "" if newest is None else f"the checkpoint of step {newest.step} ({newest.path})"


@contextmanager
def _telling_cut(path: Any) -> Iterator[None]:
    """Says what to do about a file that is no whole checkpoint."""
    try:
        yield
    except (RuntimeError, EOFError, UnpicklingError) as error:
        if is_zipfile(path):  # whole, and something else is wrong
            raise
        raise ValueError(
            f"Expected {path} to be a whole checkpoint, got {Path(path).stat().st_size} bytes that are none. "
            "Delete it, or give overwrite=true: the training starts over."
        ) from error


def _position(path: Path) -> Position:
    """Reads no tensors."""
    with _telling_cut(path):
        checkpoint = torch.load(path, map_location="cpu", mmap=True, weights_only=False)
    data = next((value for key, value in checkpoint.items() if key.endswith("DataModule")), {})
    return Position(checkpoint["global_step"], data.get("consumed", 0) > 0, path)
