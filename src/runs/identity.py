"""Where a run lives: equal values give the same directory, values that shape other results another one."""

import functools
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from src import config
from src.files import digest_text
from src.folder_names import part_folder

# Keys inside result-shaping groups that change no result: where things lie, and what they run on.
_NEUTRAL_KEY = re.compile(
    r"dataset\.(name|dir|root|on_bad_file|\w+_dir|metadata_csv|max_pixels|(tensor\w*|generator|listing)(\..*)?)"
    r"|backbone\.checkpoint"
    r"|trainer\.(accelerator|devices|num_nodes|enable_progress_bar)"
    r"|train\.(n_workers|block_size|residency|screening)"
    r"|summary\.published"
    r"|(embed|evaluation)\.batch_size|(embed|tile)\.n_workers|embed\.part"
)
_FOLD_DIR = re.compile(r"fold_([^_]+)(?:_repeat_(\d+))?(?:_seed_(\d+))?")
_LONGEST_VARIANT = 80
_DIGEST_LENGTH = 8
_REMOVED = "removed"
_DEFAULT = "default"


class Draw(NamedTuple):
    """What tells the runs of one task under one configuration apart: fold, repeat of the cross-validation and seed."""

    fold: str
    repeat: int
    seed: int


def result_values(values: Mapping[str, Any], groups: Iterable[str]) -> dict[str, Any]:
    """Returns the part of a plain configuration that shapes a result, flat: dotted key to value.

    Places and names of data do not: what lies there is compared by content.

    Args:
        values: the configuration.
        groups: the config groups that shape the result.
    """

    def flat(node: Any, key: str) -> Iterator[tuple[str, Any]]:
        if isinstance(node, Mapping) and node:
            for name, value in node.items():
                yield from flat(value, f"{key}.{name}")
        elif not is_neutral(key):
            yield key, _canonical(node)

    return dict(pair for group in sorted(groups) if group in values for pair in flat(values[group], group))


def same(one: Any, other: Any) -> bool:
    """Whether two values of a configuration are equal; true is not 1."""
    return json.dumps(one) == json.dumps(other)


def is_neutral(key: str) -> bool:
    """Whether a dotted key changes no result."""
    return _NEUTRAL_KEY.fullmatch(key) is not None


def variant(
    values: Mapping[str, Any], base: Mapping[str, Any], chosen: Mapping[str, Any], groups: Iterable[str]
) -> str:
    """Names what a configuration has other than its preset: `sae-topk+sae.k-8`, `default` where nothing differs.

    The names of choices come first, then the single keys that differ from those choices. There is no `=`, comma or
    slash in it, so that paths can be typed as overrides; what is too long is closed by a digest of all.

    Args:
        values: the configuration, plain and resolved.
        base: the preset's.
        chosen: the preset's with the choices that the configuration names.
        groups: the config groups that shape the task's result.
    """
    now, before, nearest = (result_values(one, groups) for one in (values, base, chosen))
    choices = {
        key.removesuffix(".name"): value
        for key, value in nearest.items()
        if key.count(".") == 1 and key.endswith(".name") and before.get(key) != value
    }
    named = {f"{group}.name" for group in choices}
    differing = [
        f"{key}-{_spelled(now[key]) if key in now else _REMOVED}"
        for key in sorted({*now, *nearest} - named)
        if key not in now or key not in nearest or not same(now[key], nearest[key])
    ]
    parts = [*(f"{group}-{_spelled(name)}" for group, name in sorted(choices.items())), *differing]
    return "+".join(parts) or _DEFAULT


def run_path(cfg: Any, task: str, fold: int | str | None = None) -> Path:
    """Returns the directory that the run of a task has or would have under a resolved configuration.

    Args:
        cfg: the configuration.
        task: the task.
        fold: another fold than the configuration's.

    Raises:
        ValueError: when the task leaves no run.
    """
    values = config.to_container(cfg)
    graph = config.tasks()
    spec, runs = graph[task], Path(values["paths"]["runs"])
    if spec.scope == "none":
        raise ValueError(f"Expected a task that leaves a run, got {task}, which does not.")
    if spec.scope == "dataset":
        folder = Path(values["dataset"][spec.writes[0]] or task)
        place = runs / values["dataset"]["name"] / task / (folder.stem if folder.suffix == ".csv" else folder.name)
        part = values.get(task, {}).get("part")
        return place if part is None else place / part_folder(part)
    place = "_".join([f"fold_{values['fold'] if fold is None else fold}", *_draws(values)])
    if spec.scope == "name":
        place = "_".join(_draws(values))
    graph_given = graph.given(values)
    given = {one: path for one, path in graph_given.items() if one != task and one in graph.before(task, graph_given)}
    shaping = json.dumps({key: node for key, node in values.items() if key != "task"})  # the same for all steps
    text = _variant_of(shaping, tuple(sorted(graph.groups(task, given))), config.config_dirs())
    parts = [text] if text != _DEFAULT or not given else []
    text = "+".join([*parts, *(f"{graph[one].run_key}-{_digest_of(Path(path))}" for one, path in given.items())])
    if len(text) > _LONGEST_VARIANT:
        text = f"{text[: _LONGEST_VARIANT - _DIGEST_LENGTH - 1]}-{digest_text(text, _DIGEST_LENGTH)}"
    return runs / values["name"] / text / place / task


def folds_of(path: Path) -> list[tuple[str, Path]]:
    """Returns fold and directory of the runs that differ from the one at `path` in their fold alone, sorted.

    Args:
        path: the directory of a run of a task of scope fold.
    """
    _, _, rest = path.parent.name.removeprefix("fold_").partition("_")
    pattern = re.compile(r"fold_([^_]+)" + (f"_{re.escape(rest)}" if rest else ""))
    matches = [(pattern.fullmatch(folder.name), folder) for folder in path.parent.parent.glob("fold_*")]
    found = [(match.group(1), folder / path.name) for match, folder in matches if match is not None]
    return sorted(found, key=lambda one: (len(one[0]), one[0]))


def draws_of(path: Path) -> list[tuple[Draw, Path]]:
    """Returns draw and directory of the runs that differ from the one at `path` in their draw alone, sorted.

    Args:
        path: the directory of a run of a task of scope fold. Where it is of repeat 0 and seed 0, all repeats and seeds
            are found, else those of its own.
    """
    own = _draw_of(path.parent)
    found = [(_draw_of(folder), folder / path.name) for folder in path.parent.parent.glob("fold_*")]
    draws = [(draw, run) for draw, run in found if draw is not None and own is not None and run.is_dir()]
    takes_all = own is not None and not (own.repeat or own.seed)
    kept = [(draw, run) for draw, run in draws if takes_all or (own is not None and draw[1:] == own[1:])]
    return sorted(kept, key=lambda one: (one[0].repeat, one[0].seed, len(one[0].fold), one[0].fold))


def _draw_of(folder: Path) -> Draw | None:
    match = _FOLD_DIR.fullmatch(folder.name)
    return None if match is None else Draw(match[1], int(match[2] or 0), int(match[3] or 0))


def _draws(values: Mapping[str, Any]) -> list[str]:
    """Returns what tells runs of one fold apart: the repeat of the cross-validation and the seed, where not 0."""
    return [f"{key}_{values[key]}" for key in ("repeat", "seed") if values.get(key, 0)]


@functools.lru_cache(maxsize=256)
def _variant_of(values_json: str, groups: tuple[str, ...], folders: tuple[Path, ...]) -> str:
    return variant(json.loads(values_json), *_bases(values_json, folders), groups)


@functools.lru_cache(maxsize=256)
def _bases(values_json: str, _: tuple[Path, ...]) -> tuple[dict[str, Any], dict[str, Any]]:
    return config.base_values(json.loads(values_json), is_neutral)


def _digest_of(run: Path) -> str:
    """Returns the short digest of a finished run's results; that of its path where it has none."""
    manifest = run / "manifest.json"
    stated = json.loads(manifest.read_text()).get("digest") if manifest.is_file() else None
    return str(stated)[:_DIGEST_LENGTH] if stated else digest_text(os.path.abspath(run), _DIGEST_LENGTH)


def _canonical(value: Any) -> Any:
    """Spells equal numbers alike: 8 and 8.0."""
    if isinstance(value, list):
        return [_canonical(one) for one in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _spelled(value: Any) -> str:
    """Spells a value with letters, digits, dots, hyphens and underscores, and a digest where that loses something."""
    text = value if isinstance(value, str) else json.dumps(value)
    safe = re.sub(r"[^A-Za-z0-9.-]+", "_", text).strip("_")
    is_exact = safe == text and not (isinstance(value, str) and _reads_as_other(value))
    return safe if is_exact else f"{safe}-{digest_text(json.dumps(value), 6)}"


def _reads_as_other(text: str) -> bool:
    """Whether a text looks like a number, a truth value, null or nothing: `'8'` and 8 are other values."""
    try:
        json.loads(text)
    except ValueError:
        return text in ("", _REMOVED)
    return True
