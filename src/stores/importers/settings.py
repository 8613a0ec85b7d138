"""The settings that files state: what our SAEs have, what is recorded, and what JSON can keep."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

DEEPEST = 32
"""Levels of a configuration; a file may nest without end, or hold a list that holds itself."""
_FVU_KEYS = ("fvu", "explained_variance", "frac_variance_explained")

ROW_SCALE_NOTE = (
    "Rows are divided by their standard deviation plus 1e-5 and decoded with the same sum, where the system that wrote "
    "the file decodes with the standard deviation alone: reconstructions, less the row's mean, differ by 1e-5 over it."
)


def recorded_fvu(*records: Any) -> float | None:
    """Returns the fraction of variance unexplained that one of the records of a file states, the first found."""
    for record in records:
        for key in _FVU_KEYS if isinstance(record, Mapping) else ():
            if isinstance(record.get(key), int | float):
                return float(record[key]) if key == "fvu" else 1 - float(record[key])
    return None


def plain(value: Any, what: str = "settings", deepest: int = DEEPEST) -> Any:
    """Returns a value of a foreign configuration as JSON can hold it.

    Raises:
        ValueError: when it is nested deeper than any configuration.
    """
    if not deepest:
        raise ValueError(f"Expected {what} of at most {DEEPEST} levels, got more: no program's settings are so deep.")
    if isinstance(value, Mapping):
        return {str(key): plain(entry, what, deepest - 1) for key, entry in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [plain(entry, what, deepest - 1) for entry in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value) if isinstance(value, torch.dtype | torch.device) else f"<{type(value).__name__}>"


def fractions_of(sizes: Sequence[int]) -> list[float]:
    """Returns fractions that, times the number of neurons and cut down to whole ones, give these sizes again."""
    n_latents = sum(sizes)
    fractions = [size / n_latents for size in sizes]
    # A quotient that was rounded down would lose a neuron.
    return [
        one if int(one * n_latents) == size else math.nextafter(one, 1)
        for one, size in zip(fractions, sizes, strict=True)
    ]


def whole(settings: Mapping[str, Any], key: str, source: Path) -> int:
    """Returns a setting of a file that must be there and a whole number.

    Raises:
        ValueError: naming the setting and the file.
    """
    value = settings.get(key)
    if not isinstance(value, int | float) or value != int(value):
        raise ValueError(f"Expected {key} in {source} to be a whole number, got {value!r}.")
    return int(value)


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
