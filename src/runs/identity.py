"""Where a run lives: the same command gives the same directory, other results another one."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.files import digest_text

# Root keys that change results and belong to no config group.
_RESULT_KEYS = frozenset({"seed", "split", "sae_run"})
# Keys inside result-shaping groups that do not change results: where things lie and what they run on.
_NEUTRAL_KEYS = frozenset(
    {
        "dataset.dir",
        "dataset.on_bad_file",
        "trainer",
        "trainer.accelerator",
        "trainer.devices",
        "trainer.num_nodes",
        "trainer.enable_progress_bar",
        "embed.batch_size",
        "evaluation.batch_size",
        "tile.n_workers",
    }
)
# Where things lie. What lies there is compared by content, so a run goes on when its data were moved.
_PATH_KEYS = re.compile(
    r"dataset\.(name|root|\w+_dir|metadata_csv|tensors(\..*)?|tensor_(ids|labels|cases)(\..*)?)|backbone\.checkpoint"
)
_LONGEST_VARIANT = 80
_DIGEST_LENGTH = 8


@dataclass(frozen=True)
class TaskSpec:
    """What fixes the directory of a task's run.

    Attributes:
        name: the task.
        scope: `fold` (one run a fold), `name` (one run for all folds) or `dataset` (one run for all presets).
        groups: the config groups that shape the task's result, its own and its upstreams'.
        names_backbone: whether a dataset-wide task is one per backbone.
        upstream: the tasks whose runs it reads, where they are there.
        writes: the keys of `dataset` that name what a dataset-wide task writes outside of its directory.
    """

    name: str
    scope: str
    groups: tuple[str, ...]
    names_backbone: bool = False
    upstream: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()


def variant(overrides: Sequence[str], groups: Sequence[str]) -> str:
    """Names the configuration that command-line overrides make of a preset.

    Only overrides under `groups`, and root keys that change results, enter; their order does not matter, the last of
    two for one key holds. Names and places of data do not: what lies there is compared by content. `sae_run` enters by
    digest, long names are cut and closed by a digest of the whole.

    Args:
        overrides: as typed, `key=value`.
        groups: the config groups that shape the task's result.

    Returns:
        A folder name, `default` when nothing that matters is overridden.
    """
    kept: dict[str, str] = {}
    for override in overrides:
        key, _, value = override.partition("=")
        deleted = key.startswith("~")
        key = key.lstrip("+~")
        root = re.split(r"[./@]", key)[0]
        if key in _NEUTRAL_KEYS or _PATH_KEYS.fullmatch(key) or (root not in groups and key not in _RESULT_KEYS):
            continue
        kept[key] = "removed" if deleted else _canonical(value)
    if not kept:
        return "default"
    text = ",".join(f"{key}-{_folder_safe(value)}" for key, value in sorted(kept.items()))
    text = text.replace("/", ".")
    if len(text) > _LONGEST_VARIANT:
        cut = _LONGEST_VARIANT - _DIGEST_LENGTH - 1
        text = f"{text[:cut]}-{digest_text(text, _DIGEST_LENGTH)}"
    return text


def run_path(runs: Path, subject: str, fold: int, spec: TaskSpec, overrides: Sequence[str]) -> Path:
    """Returns the directory of a task's run.

    Args:
        runs: the folder of all runs.
        subject: the preset's name, or the dataset's for dataset-wide tasks.
        fold: the cross-validation fold.
        spec: the task.
        overrides: the command line's.

    Raises:
        ValueError: when the scope is unknown.
    """
    name = variant(overrides, spec.groups)
    if spec.scope == "fold":
        return runs / subject / name / f"fold_{fold}" / spec.name
    if spec.scope == "name":
        return runs / subject / name / spec.name
    if spec.scope == "dataset":
        return runs / subject / spec.name / ("" if name == "default" else name)
    raise ValueError(f"Expected task.scope of {spec.name} to be fold, name or dataset, got {spec.scope!r}.")


def result_values(config: Mapping[str, Any], groups: Sequence[str]) -> dict[str, Any]:
    """Returns the part of a plain configuration that shapes a result, places aside, flat: dotted key to value.

    Args:
        config: the configuration.
        groups: the config groups and root keys that shape the result.
    """

    def flat(node: Any, key: str) -> Iterator[tuple[str, Any]]:
        if key in _NEUTRAL_KEYS or _PATH_KEYS.fullmatch(key) or key == "sae_run":
            return
        if isinstance(node, Mapping):
            for name, value in node.items():
                yield from flat(value, f"{key}.{name}")
        else:
            yield key, node

    roots = [root for root in config if root in groups or root in _RESULT_KEYS]
    return dict(pair for root in roots for pair in flat(config[root], root))


def _canonical(value: str) -> str:
    """Spells equal values alike: Hydra's sweeps write True and 0.001 where the user typed true and 1e-3."""
    if value.lower() in ("true", "false", "null"):
        return value.lower()
    for number in (int, float):
        try:
            return repr(number(value))
        except ValueError:
            continue
    return value


def _folder_safe(value: str) -> str:
    if "/" in value:
        # Not Path.resolve, which raises on links that lead to themselves: the task says what is wrong with the path.
        return digest_text(os.path.realpath(Path(value.strip("'\"")).expanduser()), _DIGEST_LENGTH)
    # Characters that shells or file systems treat specially are spelled by their code, so that no two values meet.
    return re.sub(r"[^\w.+-]", lambda match: f"%{ord(match.group()):x}", value)
