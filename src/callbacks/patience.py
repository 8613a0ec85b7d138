"""Ends training when validation has not become better for a while."""

from typing import Any, Literal

import lightning


class Patience(lightning.Callback):
    """Stops after `patience` epochs in a row that were not better than the best, and not before `min_epochs`.

    As CLAM's and sae-1n's loops count: from the first epoch on, an equal value is no better one, and what has been
    waited for before `min_epochs` counts only if it is still so then. (Lightning's EarlyStopping stops at `min_epochs`
    also where a better value came after its patience had ended.)

    Args:
        monitor: the key of a logged metric, which must be finite.
        mode: whether lower (`min`) or higher (`max`) is better.
        patience: epochs.
        min_epochs: epochs that are trained at least.
        stop_below: with `min`, a value below which nothing is left to learn; training stops at once, but not before
            `min_epochs`.
    """

    def __init__(
        self, monitor: str, mode: Literal["min", "max"], patience: int, min_epochs: int, stop_below: float
    ) -> None:
        self.monitor, self.sign = monitor, 1.0 if mode == "min" else -1.0
        self.patience, self.min_epochs = patience, min_epochs
        self.stop_below = stop_below if mode == "min" else float("-inf")
        self.best, self.n_waited = float("inf"), 0

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:  # noqa: ARG002
        """Looks at the epoch's validation."""
        value = self.sign * float(trainer.callback_metrics[self.monitor])
        self.best, self.n_waited = (value, 0) if value < self.best else (self.best, self.n_waited + 1)
        is_done = self.n_waited >= self.patience or value < self.stop_below
        trainer.should_stop = is_done and trainer.current_epoch + 1 >= self.min_epochs

    def state_dict(self) -> dict[str, Any]:
        """Returns what a resumed training goes on from."""
        return {"best": self.best, "n_waited": self.n_waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up `state_dict`."""
        self.best, self.n_waited = state_dict["best"], state_dict["n_waited"]
