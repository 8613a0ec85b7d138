"""Progress of training as log lines, for when there is no terminal to draw a bar on."""

import logging
import time

import lightning

_LOGGER = logging.getLogger(__name__)
_SECONDS_BETWEEN_LINES = 15.0


class PlainProgress(lightning.Callback):
    """Logs epoch, optimizer step and time, at most every 15 s."""

    def __init__(self) -> None:
        """Starts the clock."""
        self._started = self._last = time.monotonic()

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: object) -> None:
        """Logs a line when the last one is old."""
        now = time.monotonic()
        if now - self._last < _SECONDS_BETWEEN_LINES:
            return
        self._last = now
        of = f"/{trainer.max_epochs}" if trainer.max_epochs and trainer.max_epochs > 0 else ""
        elapsed = now - self._started
        _LOGGER.info("epoch %d%s, step %d, %.0f s", trainer.current_epoch + 1, of, trainer.global_step, elapsed)
