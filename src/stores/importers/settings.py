"""The settings that files state: what our SAEs have, what is recorded, and what JSON can keep."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

DEEPEST = 32
"""Levels of a configuration; a file may nest without end, or hold a list that holds itself."""
_EXPLAINED_KEYS = ("explained_variance", "frac_variance_explained")

ROW_SCALE_NOTE = (
    "Rows are divided by their standard deviation plus 1e-5 and decoded with the same sum, where the system that wrote "
    "the file decodes with the standard deviation alone: reconstructions, less the row's mean, differ by 1e-5 over it."
)


def recorded_fvu(*records: Any) -> float | None:
    """Returns the fraction of variance unexplained that one of the records of a file states, the first found."""
    for record in records:
        if not isinstance(record, Mapping):
            continue
        if isinstance(record.get("fvu"), int | float):
            return float(record["fvu"])
        for key in _EXPLAINED_KEYS:
            if isinstance(record.get(key), int | float):
                return 1 - float(record[key])
    return None


def plain(value: Any, deepest: int = DEEPEST) -> Any:
    """Returns a value of a foreign configuration as JSON can hold it.

    Raises:
        ValueError: when it is nested deeper than any configuration.
    """
    if not deepest:
        raise ValueError(f"Expected settings of at most {DEEPEST} levels in the checkpoint, got more.")
    if isinstance(value, Mapping):
        return {str(key): plain(entry, deepest - 1) for key, entry in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [plain(entry, deepest - 1) for entry in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value) if isinstance(value, torch.dtype | torch.device) else f"<{type(value).__name__}>"


def one_of(key: str, value: Any, allowed: Sequence[Any], source: Path, why: str = "") -> Any:
    """Returns a setting of a file that must be one of those that our SAEs have.

    Raises:
        ValueError: naming the setting, the file and what is possible.
    """
    if value not in allowed:
        raise ValueError(
            f"Expected {key} among {list(allowed)} in {source}, got {value!r}: our SAEs have no place for it"
            f"{f' ({why})' if why else ''}."
        )
    return value
