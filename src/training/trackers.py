"""Loggers for trackers that run in the process that trains."""

from typing import Any

from lightning.pytorch.loggers.logger import Logger

from src.runs.tracked_metrics import values_within


class PartLogger:
    """A logger that gives the metrics of one of several models their keys within it, and is `logger` in all else.

    Args:
        part: see `src.runs.tracked_metrics.key_within`.
        logger: of the part.
    """

    def __init__(self, part: str, logger: Logger) -> None:
        self._part, self._logger = part, logger

    def __getattr__(self, name: str) -> Any:
        """Returns the logger's own."""
        if name.startswith("__"):  # what pickle asks for before there is a logger
            raise AttributeError(name)
        return getattr(self._logger, name)

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Logs metrics of a step."""
        parts = [self._part] if self._part else []
        shared = {key: value for key, value in metrics.items() if "/" not in key}  # the epoch
        self._logger.log_metrics(shared | values_within(metrics, self._part, parts), step)
