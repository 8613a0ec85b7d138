"""The configuration that a run was made with, compared with the one at hand."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from src import config
from src.run_paths import result_values

_YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def differences(config_path: Path, cfg: Any, task: str, fold: int | None = None) -> list[str]:
    """Returns a line for every value that shapes a task's result and differs from the stored configuration's.

    Values that the stored configuration does not have count as their defaults; paths are compared by what lies there,
    elsewhere.

    Args:
        config_path: the stored configuration; nothing differs when there is none.
        cfg: the configuration.
        task: the task.
        fold: another fold than the configuration's.

    Raises:
        ValueError: when the stored configuration is damaged.
    """
    stored = _read_stored(config_path)
    if stored is None:
        return []
    spec = config.task_spec(task)
    before, now = (result_values(values, spec.groups) for values in (stored, config.to_container(cfg)))
    if spec.scope == "fold":
        before["fold"], now["fold"] = stored.get("fold"), cfg.fold if fold is None else fold
    return [
        f"{key}: {value!r} there, {now.get(key)!r} here"
        for key, value in sorted(before.items())
        if now.get(key) != value
    ]


def other_folders(config_path: Path, cfg: Any, keys: Sequence[str]) -> list[str]:
    """Returns those keys of `dataset` that name other files or folders than in a stored configuration."""
    stored = (_read_stored(config_path) if keys else None) or {}

    def place(values: Any, key: str) -> Path | None:
        value = values.get(key)
        return None if value is None else Path(value).resolve()

    return [key for key in keys if place(stored.get("dataset", {}), key) != place(cfg.dataset, key)]


def _read_stored(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        # Resolved already, so plain YAML; OmegaConf takes ten times as long, and a start reads many.
        stored: Any = yaml.load(path.read_text(), Loader=_YAML_LOADER)
    except (OSError, ValueError, yaml.YAMLError) as error:
        stored = error
    if not isinstance(stored, dict) or not stored:
        raise ValueError(
            f"Expected the configuration of a run in {path}, got {stored!r}. It was cut short or edited: start the run "
            "over with overwrite=true."
        )
    return stored
