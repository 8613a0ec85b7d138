"""Lightning logger that keeps metrics.csv, also through a resumed run."""

import csv
import time
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from src.files import write_atomically

_SHARE_OF_TIME = 0.05


class MetricsCsv(Logger):
    """One row an optimizer step, one column a metric; a resumed run keeps the rows from before.

    Lightning's own CSVLogger starts a new file when a run resumes and deletes the old one. Lightning asks for the file
    after each logged step: it is written as often as takes a twentieth of the time, since it grows with the run, and
    before each checkpoint (`MetricsAtCheckpoints`).
    """

    def __init__(self, path: Path) -> None:
        """Continues the file at `path` when there is one.

        Args:
            path: the csv.
        """
        super().__init__()
        self._path = Path(path)
        self._rows: dict[int, dict[str, Any]] = {}
        self._has_news, self._write_from = False, 0.0
        if self._path.is_file():
            with open(self._path, newline="") as file:
                for row in csv.DictReader(file):
                    self._rows[int(row["step"])] = {key: value for key, value in row.items() if value != ""}

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles the path: a process that trains continues the file as it then is."""
        return type(self), (self._path,)

    @property
    def name(self) -> str:
        """Lightning's name for the logger."""
        return "metrics"

    @property
    def version(self) -> str:
        """There is one version: the run directory's."""
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Adds metrics to the row of a step; a step logged again after a restart takes the new values."""
        row = self._rows.setdefault(step or 0, {"step": step or 0})
        row.update({key: float(value) for key, value in metrics.items()})
        self._has_news = True

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """The run directory's config.yaml holds them."""

    @rank_zero_only
    def save(self) -> None:
        """Writes the file, unless it was written just now."""
        if time.monotonic() >= self._write_from:
            self.write()

    @rank_zero_only
    def write(self) -> None:
        """Writes the file, whole or not at all."""
        if not self._has_news:  # another process may have written since
            return
        self._has_news = False  # where the disk is full, the end of the training does not try it again
        started = time.monotonic()
        columns = list(dict.fromkeys(key for row in self._rows.values() for key in row))
        with write_atomically(self._path) as temporary, open(temporary, "w", newline="") as file:
            writer = csv.DictWriter(file, columns, restval="")
            writer.writeheader()
            writer.writerows(row for _, row in sorted(self._rows.items()))
        ended = time.monotonic()
        self._write_from = ended + (ended - started) * (1 / _SHARE_OF_TIME - 1)

    def write_before_checkpoint(self) -> None:
        """Writes the file, and again when the next step is logged: that may belong to what the checkpoint holds."""
        self.write()
        self._write_from = 0.0

    @rank_zero_only
    def finalize(self, status: str) -> None:  # noqa: ARG002 - Lightning's signature
        """Writes the file at the end, whatever the end."""
        self.write()


class MetricsAtCheckpoints(lightning.Callback):
    """Writes metrics.csv before a checkpoint, so that a run that goes on from it has all rows before it."""

    def on_save_checkpoint(self, trainer: lightning.Trainer, *_: object) -> None:
        """Writes the files of all loggers that keep one."""
        for logger in trainer.loggers:
            if (write := getattr(logger, "write_before_checkpoint", None)) is not None:
                write()
