"""The configuration that a run was made with, compared with the one at hand."""

from pathlib import Path
from typing import Any

import yaml

from src import config
from src.files import read_yaml
from src.runs.identity import result_values, same


def differences(config_path: Path, cfg: Any, task: str, fold: int | str | None = None) -> list[str]:
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
    graph, values = config.tasks(), config.to_container(cfg)
    spec = graph[task]
    groups = spec.groups if spec.scope == "dataset" else graph.groups(task, graph.given(values))
    before, now = (result_values(one, groups) for one in (stored, values))
    if spec.scope != "dataset":
        drawn = ("seed", "repeat", "fold") if spec.scope == "fold" else ("seed", "repeat")
        before |= {key: stored[key] for key in drawn if key in stored}
        now |= {key: values[key] for key in drawn} | ({} if fold is None else {"fold": fold})
    return [
        f"{key}: {value!r} there, {now.get(key)!r} here"
        for key, value in sorted(before.items())
        if not same(now.get(key), value)
    ]


def _read_stored(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        # Resolved already, so plain YAML.
        stored: Any = read_yaml(path)
    except (OSError, ValueError, yaml.YAMLError) as error:
        stored = error
    if not isinstance(stored, dict) or not stored:
        raise ValueError(
            f"Expected the configuration of a run in {path}, got {stored!r}. It was cut short or edited: start the run "
            "over with overwrite=true."
        )
    return stored
