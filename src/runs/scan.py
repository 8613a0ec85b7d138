"""Finds run directories, and reads what their small files say: no configuration is composed, no table loaded."""

import csv
import io
import os
from collections.abc import Iterator
from pathlib import Path

# Folders of runs and launches that hold no further runs, and may hold many files.
_NO_RUNS = {".hydra", ".sweeps", "analysis", "checkpoints", "export", "latents", "plots", "wandb"}
_TAIL = 8192  # bytes


def find_runs(folder: Path) -> Iterator[Path]:
    """Yields every directory below a folder that holds a run, begun or ended, sorted by path."""
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in _NO_RUNS)
        if "manifest.json" in files or ".lock" in files:
            yield Path(place)


def last_metrics(path: Path) -> dict[str, str]:
    """Returns the newest value of each column of a metrics.csv, as text; nothing where there is none."""
    try:
        with open(path, "rb") as file:
            header = file.readline().decode()
            file.seek(max(len(header.encode()), os.fstat(file.fileno()).st_size - _TAIL))
            tail = file.read().decode(errors="replace")
    except FileNotFoundError:
        return {}
    columns = next(csv.reader([header]), [])
    found: dict[str, str] = {}
    for row in csv.reader(io.StringIO(tail)):
        if len(row) == len(columns):  # the first may have lost its beginning
            found |= {column: value for column, value in zip(columns, row, strict=True) if value}
    return found


def last_line(path: Path, leave_out: tuple[str, ...] = ()) -> str:
    """Returns the last line with text of a log, but for those that begin in some ways; empty where there is none."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
            lines = file.read().decode(errors="replace").splitlines()
    except FileNotFoundError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip() and not line.startswith(leave_out)), "")


def newest_write(run: Path) -> float | None:
    """Returns when a run last wrote its log or its metrics, in seconds since the epoch; None when never."""
    times = []
    for name in ("run.log", "metrics.csv"):
        try:
            times.append((run / name).stat().st_mtime)
        except FileNotFoundError:
            continue
    return max(times, default=None)
