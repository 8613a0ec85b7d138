"""What a tracker shows of a run directory: its metrics, whole and by part, with the same keys in all of them."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

WHOLE = ""
"""In place of a part: what belongs to none."""
_COUNTERS = ("step", "epoch")

Rows = list[tuple[int, dict[str, float]]]


def key_within(key: str, part: str, parts: Sequence[str]) -> str | None:
    """Returns the key that a metric has within a part of a run, None where it is another part's.

    Several models may share a run directory: `val/abmil_latents_loss` is `val/loss` of the part `abmil_latents`.

    Args:
        key: of the run's metrics or results.
        part: the part, or WHOLE.
        parts: all parts; of those whose names begin alike the longest is meant.
    """
    stage, slash, name = key.partition("/")
    owners = [one for one in parts if slash and name.startswith(f"{one}_")]
    owner = max(owners, key=len, default=WHOLE)
    if owner != part:
        return None
    return key if part == WHOLE else f"{stage}/{name.removeprefix(f'{part}_')}"


def values_within(values: Mapping[str, float], part: str, parts: Sequence[str]) -> dict[str, float]:
    """Returns the metrics of a part by their keys within it."""
    named = {key_within(key, part, parts): value for key, value in values.items()}
    return {key: value for key, value in named.items() if key is not None}


def read_metrics(path: Path, part: str, parts: Sequence[str]) -> Rows:
    """Returns the rows of metrics.csv that say something of a part: optimizer step and metrics, by step."""
    if not path.is_file():
        return []
    rows: Rows = []
    with open(path, newline="") as file:
        for row in csv.DictReader(file):
            numbers = {key: float(value) for key, value in row.items() if value not in ("", None)}
            own = values_within(numbers, part, parts)
            if own.keys() - set(_COUNTERS):
                rows.append((int(numbers["step"]), {key: value for key, value in own.items() if key != "step"}))
    return sorted(rows, key=lambda row: row[0])
