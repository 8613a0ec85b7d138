"""Checkpoints that a kill cannot leave half written."""

from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import is_zipfile

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
        try:
            return super().load_checkpoint(path, *args, **kwargs)
        except (RuntimeError, EOFError, UnpicklingError) as error:
            if is_zipfile(path):  # whole, and something else is wrong
                raise
            raise ValueError(
                f"Expected {path} to be a whole checkpoint, got {Path(path).stat().st_size} bytes that are none. "
                "Delete it, or give overwrite=true: the training starts over."
            ) from error


def describe_checkpoint(path: Path) -> str:
    """Says how far a checkpoint got, for a user; an empty text when there is none. Reads no tensors."""
    if not path.is_file():
        return ""
    step = torch.load(path, map_location="cpu", mmap=True, weights_only=False)["global_step"]
    return f"the checkpoint of step {step} ({path})"
