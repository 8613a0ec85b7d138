"""The configuration that a run was made with, compared with the one at hand."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from src import config
from src.runs.identity import result_values, same

_YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


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


def other_folders(config_path: Path, cfg: Any, keys: Sequence[str]) -> list[str]:
    """Returns those keys of `dataset` that name other files or folders than in a stored configuration.

    A folder is the same where it has the same place below the root of all data or of the dataset: those may be moved.
    """
    stored = (_read_stored(config_path) if keys else None) or {}
    return [key for key in keys if _places(stored, key).isdisjoint(_places(config.to_container(cfg), key))]


def _places(values: Mapping[str, Any], key: str) -> set[tuple[str, str]]:
    """Returns where a key of `dataset` leads: the path itself, and its place below each folder that it lies in."""
    dataset = values.get("dataset", {})
    if dataset.get(key) is None:
        return {("nowhere", "")}
    path = Path(dataset[key]).absolute()
    places = {("path", str(path))}
    for name, root in (("data", values.get("paths", {}).get("data")), ("dataset", dataset.get("dir"))):
        if root is not None and path.is_relative_to(root := Path(root).absolute()):
            places.add((name, str(path.relative_to(root))))
    return places


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
