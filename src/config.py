"""The only place, with run.py, that knows Hydra: composing, checking and instantiating configurations."""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import InstantiationException, OverrideParseException
from hydra.types import RunMode
from hydra.utils import get_object
from hydra.utils import instantiate as hydra_instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from src.checks.arguments import accepted_arguments
from src.checks.paths import missing_data, wrong_folders, wrong_run
from src.checks.values import flat_values, group_errors, kinds_of_files, value_errors
from src.data.slides.layout import find_features_dir, find_patches_dir
from src.folder_names import (
    features_folder,
    folder_name,
    patches_folder,
    repeated_folder,
    split_seed,
    splits_folder,
)
from src.records import class_name
from src.task_graph import STEPS, TaskGraph, TaskSpec, read_tasks

CONF_DIR = Path(__file__).resolve().parent.parent / "conf"

# Their files set keys of other groups.
_GLOBAL_GROUPS = ("exp", "local", "task")


def register_resolvers() -> None:
    """Registers the resolvers that conf/ uses; safe to call twice."""
    OmegaConf.register_new_resolver("loupe.folder_name", folder_name, replace=True)
    OmegaConf.register_new_resolver("loupe.patches", patches_folder, replace=True)
    OmegaConf.register_new_resolver("loupe.features", features_folder, replace=True)
    OmegaConf.register_new_resolver("loupe.split_seed", split_seed, replace=True)
    OmegaConf.register_new_resolver("loupe.splits", splits_folder, replace=True)
    OmegaConf.register_new_resolver("loupe.repeated", repeated_folder, replace=True)
    OmegaConf.register_new_resolver("loupe.find_patches", find_patches_dir, replace=True)
    OmegaConf.register_new_resolver("loupe.find_features", find_features_dir, replace=True)


def config_dirs() -> tuple[Path, ...]:
    """Returns the folders of configuration files: conf/, and those of --config-dir and hydra.searchpath."""
    if not HydraConfig.initialized():
        return (CONF_DIR,)
    sources = HydraConfig.get().runtime.config_sources
    return tuple(dict.fromkeys([CONF_DIR, *(Path(one.path) for one in sources if one.schema == "file")]))


def tasks() -> TaskGraph:
    """Returns the tasks that conf/task declares, and those of further configuration folders.

    Raises:
        ValueError: when a declaration is wrong.
    """
    return read_tasks(config_dirs())


def has_choice(group: str, name: str) -> bool:
    """Whether a config group has a file of this name."""
    return any((folder / group / f"{name}.yaml").is_file() for folder in config_dirs())


def with_task(cfg: DictConfig, task: str) -> DictConfig:
    """Returns a resolved configuration with another task; all other values stay.

    Raises:
        ValueError: when there is no such task.
    """
    return _frozen(to_container(cfg) | {"task": dict(tasks()[task].node)})


def with_values(cfg: DictConfig, groups: dict[str, dict[str, Any]]) -> DictConfig:
    """Returns a resolved configuration with some values of some groups replaced."""
    values = to_container(cfg)
    return _frozen(values | {group: values[group] | changed for group, changed in groups.items()})


def compose(overrides: Sequence[str]) -> DictConfig:
    """Composes a configuration as the command line with these overrides would, without Hydra's own node."""
    if GlobalHydra.instance().is_initialized():  # inside a run: the same search path, `--config-dir` included
        typed = HydraConfig.get().overrides.hydra if HydraConfig.initialized() else []
        searched = [override for override in typed if override.startswith("hydra.searchpath=")]
        return take(hydra.compose("config", overrides=[*overrides, *searched], return_hydra_config=True))
    with hydra.initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return take(hydra.compose("config", overrides=list(overrides), return_hydra_config=True))


def take(composed: DictConfig, hydra_node: Any = None) -> DictConfig:
    """Returns a composed configuration without Hydra's own node, the preset that was typed noted in it."""
    node = composed.hydra if hydra_node is None else hydra_node
    cfg = _without_hydra(composed)
    with open_dict(cfg):
        cfg.preset = node.runtime.choices.get("exp")
    return cfg


def base_values(values: dict[str, Any], keep: Callable[[str], bool]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns what a configuration would be without the overrides that the user typed.

    The base is conf/exp/<name>.yaml, which all presets of one name share; where there is none, the preset that was
    typed. Fold, repeat and seed are those of the configuration.

    Args:
        values: the configuration, plain and resolved.
        keep: tells the dotted keys whose values are taken from the configuration: places of data and the like.

    Returns:
        The base, and the base with the choices of groups that the configuration names (`sae.name`); plain values.
    """
    preset = values["name"] if has_choice("exp", str(values["name"])) else values["preset"]
    typed = () if preset is None else (f"exp={preset}",)
    base, composed = _plain_base(typed, values, keep), _compose_once(typed, config_dirs())
    choices = [
        f"{group}={node['name']}"
        for group, node in values.items()
        if isinstance(node, dict)
        and node.get("name") is not None
        and node["name"] != OmegaConf.select(composed, f"{group}.name")
        and has_choice(group, str(node["name"]))
        and group not in _GLOBAL_GROUPS
    ]
    return base, _plain_base((*typed, *choices), values, keep) if choices else base


def _plain_base(typed: tuple[str, ...], values: dict[str, Any], keep: Callable[[str], bool]) -> dict[str, Any]:
    base = _compose_once(typed, config_dirs()).copy()
    with open_dict(base):
        for key in ("fold", "repeat", "seed"):
            base[key] = values[key]
        for key, value in flat_values(values):
            if not isinstance(value, dict) and "[]" not in key and keep(key):  # a list comes before its elements
                OmegaConf.update(base, key, value, force_add=True)
    plain = to_container(base)
    _name_classes(plain["dataset"])
    return plain


@functools.cache
def _compose_once(typed: tuple[str, ...], _: tuple[Path, ...]) -> DictConfig:
    return compose(typed)


def resolve(cfg: DictConfig) -> DictConfig:
    """Returns a resolved, read-only copy without Hydra's node: what tasks receive and config.yaml records.

    Raises:
        ValueError: from `validate`, with every wrong value at once.
    """
    validate(cfg)
    values: Any = OmegaConf.to_container(_without_hydra(cfg), resolve=True)
    _name_classes(values["dataset"])
    return _frozen(values)


def _frozen(values: dict[str, Any]) -> DictConfig:
    plain = OmegaConf.create(values)
    OmegaConf.set_readonly(plain, True)
    OmegaConf.set_struct(plain, True)
    return plain  # pyright: ignore[reportReturnType]


def _name_classes(dataset: dict[str, Any]) -> None:
    """Makes texts of labels such as 0 and 1, which YAML and the command line take for numbers."""
    if dataset.get("class_names") is not None:
        dataset["class_names"] = [class_name(name, "dataset.class_names") for name in dataset["class_names"]]
    for key in ("positive_class", "uncertain"):
        if dataset.get(key) is not None:
            dataset[key] = class_name(dataset[key], f"dataset.{key}")


def to_container(cfg: DictConfig) -> dict[str, Any]:
    """Returns the configuration as plain dicts and lists."""
    return OmegaConf.to_container(cfg, resolve=True)  # pyright: ignore[reportReturnType]


def to_yaml(cfg: DictConfig) -> str:
    """Returns the configuration as YAML text."""
    return OmegaConf.to_yaml(cfg)


def hydra_overrides() -> list[str]:
    """Returns the overrides that this process was started with, as the user typed them."""
    return list(HydraConfig.get().overrides.task)


def expand_grid(grid: Sequence[str]) -> list[list[str]]:
    """Expands overrides with several values, as `-m` takes them, to the overrides of every combination.

    Args:
        grid: e.g. `["sae=batch_topk,topk", "sae.k=8,16"]`; ranges, globs and choices work as on the command line.

    Returns:
        The combinations in the order of Hydra's own sweeps: the last override varies fastest.

    Raises:
        ValueError: when an override cannot be parsed, deletes a key, or two of them are for one key.
    """
    try:
        parsed = OverridesParser.create().parse_overrides(list(grid))
    except OverrideParseException as error:
        raise ValueError(
            f"Expected sweep.grid to hold overrides such as sae.k=8,16, got {list(grid)}: {error}"
        ) from error
    keys = [override.get_key_element() for override in parsed]
    if doubled := sorted({key for key in keys if keys.count(key) > 1}):
        raise ValueError(f"Expected one entry of sweep.grid for each key, got several for {doubled}.")
    axes = []
    for key, override in zip(keys, parsed, strict=True):
        if override.is_delete():
            raise ValueError(f"Expected sweep.grid to set keys, got {override.input_line!r}, which deletes one.")
        is_sweep = override.is_sweep_override()
        values = override.sweep_string_iterator() if is_sweep else [override.get_value_element_as_str()]
        axes.append([f"{key}={value}" for value in values])
    return [list(combination) for combination in itertools.product(*axes)]


def instantiate(node: Any, **kwargs: Any) -> Any:
    """Builds the object that a config node names by `_target_`, with plain Python values.

    The name of a choice, which is for run directories, is handed on to classes that take one only. The one call of
    Hydra's instantiate, so that a later whitelist of targets is a one-line change.

    Raises:
        ValueError, OSError: the constructor's own; as a ValueError also whatever else it raises.
    """
    if "name" in node and "name" not in accepted_arguments(get_object(node["_target_"]))[0]:
        node = {key: value for key, value in node.items() if key != "name"}
    try:
        return hydra_instantiate(node, _convert_="all", **kwargs)
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, ValueError | OSError):
            raise cause from None
        raise ValueError(
            f"Expected values that {node['_target_']} can be made of, got {type(cause or error).__name__}: "
            f"{cause or error}"
        ) from error


def task_function(target: str) -> Any:
    """Returns the function that a dotted path names."""
    return get_object(target)


def validate(cfg: DictConfig) -> None:
    """Checks the values of a configuration, without importing what it names.

    Raises:
        ValueError: listing all errors.
    """
    cfg = _without_hydra(cfg)
    errors = list(_unresolved(cfg))
    if not errors:
        missing = sorted(OmegaConf.missing_keys(cfg))
        errors += [f"{key}: expected a value, got none; give {key}=<value>" for key in missing]
        plain = to_container(cfg)
        errors += [*group_errors(plain, _groups()), *value_errors(plain, kinds_of_files(CONF_DIR, _groups()))]
        if not errors:
            given = tasks().given(plain).items()
            errors += wrong_folders(plain["paths"])
            errors += [error for task, path in given for error in wrong_run(tasks()[task].run_key or "", task, path)]
            errors += [*_wrong_grid(cfg), *_processes_in_a_sweep(cfg), *_search_of_another_task(plain)]
    _raise(errors)


def check_start(cfg: DictConfig) -> None:
    """Checks what a task needs to begin, and a finished run does not: its data, then what it builds of its values.

    Raises:
        ValueError: listing all errors.
    """
    plain = to_container(cfg)
    _raise(list(missing_data(plain)))
    # Not before: they import torch, Lightning and the backbones' libraries.
    from src.checks.targets import target_errors
    from src.checks.trial import trial_errors

    own = {group for spec in _own_specs(cfg) for group in spec.groups}
    nodes = {group: plain[group] for group in plain if group in own or group in ("task", "logger")}
    _raise(list(target_errors(nodes)))
    _raise(list(trial_errors(plain, own, instantiate)))


def _own_specs(cfg: DictConfig) -> list[TaskSpec]:
    """Returns the task, or the steps of the pipeline: what runs in this process."""
    spec = tasks()[cfg.task.name]
    return tasks().steps if spec.upstream == STEPS else [spec]


def _raise(errors: list[str]) -> None:
    if errors:
        raise ValueError("Expected a complete configuration, got:\n  " + "\n  ".join(errors))


@functools.cache
def _groups() -> tuple[str, ...]:
    """Returns the groups that every configuration has: those of conf/config.yaml that set keys of their own name."""
    defaults: Any = OmegaConf.load(CONF_DIR / "config.yaml")["defaults"]  # pyright: ignore[reportArgumentType]
    named = {str(group) for entry in defaults if not isinstance(entry, str) for group in entry}
    return tuple(sorted(group for group in named if (CONF_DIR / group).is_dir() and group not in _GLOBAL_GROUPS))


def _unresolved(node: Any, key: str = "") -> Iterator[str]:
    """Yields an error for every reference to another key, or to the environment, that leads nowhere."""
    if not isinstance(node, DictConfig | ListConfig) or node._is_none() or node._is_missing():
        return
    inside: Any = node
    for name in inside if isinstance(node, DictConfig) else range(len(node)):
        inner = f"{key}.{name}" if key else str(name)
        try:
            child = None if OmegaConf.is_missing(node, name) else inside[name]
        except OmegaConfBaseException as error:
            yield f"{inner}: expected references that lead somewhere, got {str(error).splitlines()[0]}"
            continue
        yield from _unresolved(child, inner)


def _wrong_grid(cfg: DictConfig) -> Iterator[str]:
    try:
        expand_grid(cfg.sweep.grid)
    except ValueError as error:
        yield f"sweep.grid: {error}"


def _search_of_another_task(values: dict[str, Any]) -> Iterator[str]:
    task = values["task"]["name"]
    if values["search"]["space"] and "search" not in tasks().groups(task):
        yield (
            f"search: expected search={values['search']['name']} with task=search, got task={task}; leave the task "
            f"away, or give search.task={task} for trials of it"
        )


def _processes_in_a_sweep(cfg: DictConfig) -> Iterator[str]:
    """Yields an error where the jobs of `-m` that run in this process, one after another, would start processes."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return
    from src.checks.devices import n_devices

    starts = any(spec.starts_processes for spec in _own_specs(cfg))
    several = n_devices(cfg.trainer.accelerator, cfg.trainer.devices) > 1
    if several and starts and cfg.cluster.kind == "local":
        yield (
            f"trainer.devices: expected 1 device for the jobs of -m, which all run inside one process, got "
            f"{cfg.trainer.devices}; start the jobs one after the other without -m, or give cluster=workers or "
            "cluster=slurm"
        )


def _without_hydra(cfg: DictConfig) -> DictConfig:
    return OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"])  # pyright: ignore
