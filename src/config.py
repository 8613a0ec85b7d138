"""The only place, with run.py, that knows Hydra: composing, checking and instantiating configurations."""

import functools
import itertools
import os
from collections.abc import Iterator, Sequence
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
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from src.checks.paths import missing_data, wrong_folders, wrong_sae_run
from src.checks.targets import target_errors
from src.checks.trial import trial_errors
from src.checks.values import Kinds, default_kinds, group_errors, value_errors
from src.files import digest_text
from src.records import class_name
from src.runs.identity import TaskSpec, run_path
from src.training.ddp import n_devices

CONF_DIR = Path(__file__).resolve().parent.parent / "conf"

# The tasks that start a process for each of several trainer.devices.
_STARTS_PROCESSES = ("train_sae", "pipeline")
# Their files set keys of other groups.
_GLOBAL_GROUPS = ("cluster", "exp", "local", "task")


def register_resolvers() -> None:
    """Registers the resolvers that conf/ uses; safe to call twice."""
    OmegaConf.register_new_resolver("loupe.folder_name", folder_name, replace=True)


def folder_name(folder: str | None) -> str:
    """Returns a run name for a folder: its name and six hex digits of its resolved path."""
    if not folder:
        return "unnamed"
    path = os.path.realpath(Path(folder).expanduser())  # Path.resolve raises on links that lead to themselves
    return f"{os.path.basename(path)}_{digest_text(path, 6)}"


@functools.cache
def task_spec(task: str) -> TaskSpec:
    """Reads from conf/task/<task>.yaml what fixes the directory of a task's run.

    Raises:
        ValueError: when there is no such task.
    """
    path = CONF_DIR / "task" / f"{task}.yaml"
    if not path.is_file():
        known = sorted(file.stem for file in path.parent.glob("*.yaml"))
        raise ValueError(f"Expected a task among {known}, got {task!r}.")
    node: Any = OmegaConf.load(path)["task"]  # pyright: ignore[reportArgumentType]
    return TaskSpec(
        task,
        node["scope"],
        tuple(node["groups"]),
        bool(node.get("names_backbone", False)),
        tuple(node.get("upstream", ())),
        tuple(node.get("writes", ())),
    )


def locate_run(cfg: DictConfig, overrides: Sequence[str], task: str, fold: int | None = None) -> Path:
    """Returns the directory that `task` has or would have under the configuration and overrides of this run.

    Args:
        cfg: the configuration.
        overrides: what the user typed.
        task: the task.
        fold: another fold than the configuration's.
    """
    spec = task_spec(task)
    subject = cfg.name
    if spec.scope == "dataset":
        subject = cfg.dataset.name + (f"_{cfg.backbone.name}" if spec.names_backbone else "")
    return run_path(Path(cfg.paths.runs), subject, cfg.fold if fold is None else fold, spec, overrides)


def compose(overrides: Sequence[str]) -> DictConfig:
    """Composes a configuration as the command line with these overrides would, without Hydra's own node."""
    if GlobalHydra.instance().is_initialized():  # inside a run: the same search path, `--config-dir` included
        return hydra.compose("config", overrides=list(overrides))
    with hydra.initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return hydra.compose("config", overrides=list(overrides))


def resolve(cfg: DictConfig) -> DictConfig:
    """Returns a resolved, read-only copy without Hydra's node: what tasks receive and config.yaml records.

    Raises:
        ValueError: from `validate`, with every error of the configuration at once.
    """
    validate(cfg)
    values: Any = OmegaConf.to_container(_without_hydra(cfg), resolve=True)
    _name_classes(values["dataset"])
    plain = OmegaConf.create(values)
    OmegaConf.set_readonly(plain, True)
    OmegaConf.set_struct(plain, True)
    return plain  # pyright: ignore[reportReturnType]


def _name_classes(dataset: dict[str, Any]) -> None:
    """Makes texts of labels such as 0 and 1, which YAML and the command line take for numbers."""
    if dataset.get("class_names") is not None:
        dataset["class_names"] = [class_name(name, "dataset.class_names") for name in dataset["class_names"]]
    if dataset.get("positive_class") is not None:
        dataset["positive_class"] = class_name(dataset["positive_class"], "dataset.positive_class")


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

    The one call of Hydra's instantiate, so that a later whitelist of targets is a one-line change.

    Raises:
        ValueError, OSError: the constructor's own; as a ValueError also whatever else it raises.
    """
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
    """Checks a whole configuration before any work: values, targets and their arguments.

    Raises:
        ValueError: listing all errors.
    """
    cfg = _without_hydra(cfg)
    errors = list(_unresolved(cfg))
    if not errors:
        missing = sorted(OmegaConf.missing_keys(cfg))
        errors += [f"{key}: expected a value, got none; give {key}=<value>" for key in missing]
        plain = to_container(cfg)
        errors += [*group_errors(plain, _groups()), *value_errors(plain, _default_kinds()), *target_errors(plain)]
        if not errors:
            errors += [*wrong_folders(plain["paths"]), *wrong_sae_run(plain["sae_run"])]
            errors += [*_wrong_grid(cfg), *_processes_in_a_sweep(cfg)]
    _raise(errors)


def check_start(cfg: DictConfig) -> None:
    """Checks what a task needs to begin, and a finished run does not: its data, and what it builds of its values.

    Raises:
        ValueError: listing all errors.
    """
    plain = to_container(cfg)
    _raise([*missing_data(plain), *trial_errors(plain, instantiate)])


def _raise(errors: list[str]) -> None:
    if errors:
        raise ValueError("Expected a complete configuration, got:\n  " + "\n  ".join(errors))


@functools.cache
def _groups() -> tuple[str, ...]:
    """Returns the groups that every configuration has: those of conf/config.yaml that set keys of their own name."""
    defaults: Any = OmegaConf.load(CONF_DIR / "config.yaml")["defaults"]  # pyright: ignore[reportArgumentType]
    named = {str(group) for entry in defaults if not isinstance(entry, str) for group in entry}
    return tuple(sorted(group for group in named if (CONF_DIR / group).is_dir() and group not in _GLOBAL_GROUPS))


@functools.cache
def _default_kinds() -> Kinds:
    """Returns the kinds of the values that the files of all groups and conf/config.yaml give their keys."""
    files = [("", CONF_DIR / "config.yaml")]
    files += [(group, path) for group in _groups() for path in sorted((CONF_DIR / group).rglob("*.yaml"))]
    nodes: list[tuple[str, Any]] = [(group, OmegaConf.to_container(OmegaConf.load(path))) for group, path in files]
    for _, node in nodes:
        for own in ("defaults", "hydra"):
            node.pop(own, None)
    return default_kinds(nodes)


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


def _processes_in_a_sweep(cfg: DictConfig) -> Iterator[str]:
    """Yields an error where the jobs of `-m` that run in this process, one after another, would start processes."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return
    launcher = str(HydraConfig.get().launcher._target_)
    several = n_devices(cfg.trainer.accelerator, cfg.trainer.devices) > 1
    if several and cfg.task.name in _STARTS_PROCESSES and not launcher.endswith("SlurmLauncher"):
        yield (
            f"trainer.devices: expected 1 device for the jobs of -m, which all run inside one process, got "
            f"{cfg.trainer.devices}; start the jobs one after the other without -m, or give cluster=slurm"
        )


def _without_hydra(cfg: DictConfig) -> DictConfig:
    return OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"])  # pyright: ignore


def _resolve_run_dir(*, _root_: DictConfig) -> str:
    # Absolute, so that Hydra does not join a sweep's directory in front of it.
    return str(locate_run(_root_, list(_root_.hydra.overrides.task), _root_.task.name).absolute())
