"""Shows what every run and job is doing; imports neither torch nor pandas, takes no lock, leaves nothing."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from src import config
from src.runs import state
from src.runs.overview import RunView, read_overview
from src.runs.provenance import SCHEMA_VERSION
from src.runs.rundir import RunDir

_LOGGER = logging.getLogger(__name__)
_COLUMNS = ("run", "state", "progress", "last metric", "heartbeat", "SLURM")


def run(cfg: Any, rundir: RunDir) -> dict[str, float]:
    """Logs a table of the runs under `paths.runs`, and for each that is not well the reason and what to type.

    `name=` and `exp=` leave out other experiments; the data set's own runs (tiling, embedding) are shown with them.

    Returns:
        The number of runs in each state.
    """
    runs = rundir.path
    typed = {override.partition("=")[0] for override in config.hydra_overrides()}
    names = [cfg.name] if typed & {"name", "exp"} else []
    if "exp" in typed or "dataset.name" in typed:
        names.append(cfg.dataset.name)
    folders = [runs / str(name) for name in names] or [runs]
    views = read_overview(runs, folders, cfg.status.stalled_minutes, SCHEMA_VERSION)
    views.sort(key=lambda view: (state.STATES.index(view.state), view.path))
    counts = {one: sum(view.state == one for view in views) for one in state.STATES}
    shown = [view for view in views if cfg.status.finished or view.state != state.FINISHED]
    if shown:
        _LOGGER.info("%s", _table(shown, runs))
    listed = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    more = (
        "" if cfg.status.finished or not counts[state.FINISHED] else " (status.finished=true lists the finished ones)"
    )
    _LOGGER.info("%d runs under %s: %s%s", len(views), ", ".join(map(str, folders)), listed or "none", more)
    return {f"n_{name}": float(count) for name, count in counts.items()}


def _table(views: Sequence[RunView], runs: Path) -> str:
    """Returns the views as text: a line each, and below it what is wrong and what to type."""
    root = runs.absolute()
    cells = [
        (
            str(view.path.relative_to(root)),
            view.state,
            view.progress,
            view.metric,
            "" if view.heartbeat is None else f"{view.heartbeat:.0f} s ago",
            view.slurm,
        )
        for view in views
    ]
    widths = [max(len(row[column]) for row in [_COLUMNS, *cells]) for column in range(len(_COLUMNS))]
    lines = [_line(_COLUMNS, widths)]
    for row, view in zip(cells, views, strict=True):
        lines.append(_line(row, widths))
        lines += [f"    {text}" for text in (view.error, view.command) if text]
    return "\n".join(lines)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
