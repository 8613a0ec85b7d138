"""Checkpoints that a kill cannot leave half written."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

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
        with write_atomically(Path(path)) as temporary:
            torch.save(checkpoint, temporary)
