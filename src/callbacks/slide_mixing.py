"""Logs how well the batches of each epoch mixed the slides."""

from typing import Any

import lightning


class SlideMixing(lightning.Callback):
    """Logs `data/slide_entropy` at the end of each epoch; see `src.data.feeding.activations.ActivationDataModule`.

    1 is what a permutation of all rows gives. Where they are more than a window, less says that the window is too small
    for the order in which slides lie in the store.
    """

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Logs one number for the epoch."""
        data: Any = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        # The same in all processes; Lightning wants to hear that it is to be.
        pl_module.log("step", float(pl_module.n_steps), sync_dist=True)
        pl_module.log("data/slide_entropy", data.slide_entropy(trainer.current_epoch), sync_dist=True)
