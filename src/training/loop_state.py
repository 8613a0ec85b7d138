"""Lightning's count of blocks, brought in step with the position of a data module."""

from functools import partial
from typing import Any

import lightning


class LoopState(lightning.Callback):
    """Lets training stop and go on anywhere in an epoch; for data modules with a `train_loader` (`EpochLoader`)."""

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:  # noqa: ARG002
        """Tells the data module of blocks that are handed out and not finished: they come again after a resume."""
        data: Any = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        data.n_unfinished = partial(unfinished_blocks, trainer)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:  # noqa: ARG002
        """Counts the blocks of this run's size where the checkpoint's had another."""
        data: Any = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        if data.train_loader.consumed:
            recount_blocks(trainer, data.train_loader.n_blocks_done)


def unfinished_blocks(trainer: lightning.Trainer) -> int:
    """Returns how many blocks (0 or 1) Lightning has taken but not finished, as when training stops with an error."""
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    return progress.ready - progress.processed


def recount_blocks(trainer: lightning.Trainer, n_done: int) -> None:
    """Sets how many blocks of the epoch are done, by which Lightning tells its end and with it the validation."""
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    if difference := n_done - progress.processed:
        for name in ("ready", "started", "processed", "completed"):
            setattr(progress, name, getattr(progress, name) + difference)
