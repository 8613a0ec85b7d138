"""The only place, with run.py, that knows Hydra: composing, checking and instantiating configurations."""

import functools
import inspect
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import OverrideParseException
from hydra.types import RunMode
from hydra.utils import get_object
from hydra.utils import instantiate as hydra_instantiate
from omegaconf import DictConfig, OmegaConf

from src.files import digest_text
from src.modules.ddp import n_devices
from src.records import class_name
from src.run_paths import TaskSpec, result_values, run_path

_YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
CONF_DIR = Path(__file__).resolve().parent.parent / "conf"

# What a task may need before it starts, and how a user comes by it.
_REMEDIES = {
    "slides_dir": "give dataset.slides_dir=<folder of slides>",
    "annotations_dir": "give dataset.annotations_dir=<folder of ASAP XML files>",
    "patches_dir": "make it with task=tile",
    "features_dir": "make it with task=embed, or give dataset.features_dir=<folder with h5_files/ or pt_files/>",
    "metadata_csv": "give dataset.metadata_csv=<csv with columns case_id, slide_id, label>, or of tensors make it with "
    "task=metadata",
    "splits_dir": "make it with task=splits, or give dataset.splits_dir=<folder with splits_<k>.csv>",
}

# The tasks that start a process for each of several trainer.devices.
_STARTS_PROCESSES = ("train_sae", "pipeline")


def register_resolvers() -> None:
    """Registers the resolvers that conf/ uses; safe to call twice."""
    OmegaConf.register_new_resolver("loupe.run_dir", _resolve_run_dir, replace=True)
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
    """
    return hydra_instantiate(node, _convert_="all", **kwargs)


def task_function(target: str) -> Any:
    """Returns the function that a dotted path names."""
    return get_object(target)


def validate(cfg: DictConfig) -> None:
    """Checks a whole configuration before any work: missing values, targets, arguments.

    Raises:
        ValueError: listing all errors.
    """
    errors = [f"{key}: expected a value, got none; give {key}=<value>" for key in sorted(OmegaConf.missing_keys(cfg))]
    errors += [error for key, node in _targets(_without_hydra(cfg)) for error in _binding_errors(key, node)]
    if not errors:
        errors += _processes_in_a_sweep(cfg)
    _raise(errors)


def require_data(cfg: DictConfig) -> None:
    """Checks that the data are there that a task needs to begin; a finished run does not.

    Raises:
        ValueError: listing all that is missing.
    """
    _raise(list(_missing_data(cfg)))


def _raise(errors: list[str]) -> None:
    if errors:
        raise ValueError("Expected a complete configuration, got:\n  " + "\n  ".join(errors))


def _missing_data(cfg: DictConfig) -> Iterator[str]:
    streams = cfg.train.residency == "stream" and "needs_to_stream" in cfg.task
    needs = cfg.task.needs_to_stream if streams else cfg.task.get("needs", [])
    for key in needs:
        value = cfg.dataset.get(key)
        if key == "features_dir" and cfg.dataset.get("tensors") is not None:
            continue  # reading the tensors says which file is missing
        if value is None or not Path(value).exists():
            found = "no path" if value is None else f"nothing at {value}"
            remedy = _REMEDIES[key]
            if streams and key in ("patches_dir", "slides_dir"):
                remedy += "; or train on feature files or tensors, with another train.residency than stream"
            yield f"task={cfg.task.name} needs dataset.{key}: found {found}; {remedy}"


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


def _targets(node: Any, key: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yields every node that names a class or function, with its key; unresolved values are left as they are."""
    if isinstance(node, DictConfig):
        if node._is_none() or node._is_missing():
            return
        if "_target_" in node:
            yield key, node  # pyright: ignore[reportReturnType]
        for name in node:
            if not OmegaConf.is_missing(node, name):
                yield from _targets(node[name], f"{key}.{name}" if key else str(name))


def _binding_errors(key: str, node: Mapping[str, Any]) -> Iterator[str]:
    target = node["_target_"]
    try:
        callable_ = get_object(target)
    except Exception as error:  # whatever the import raises is what the user must see
        yield f"{key}: expected _target_ to name a class or function, got {target!r} ({error})"
        return
    if key == "task":
        return
    names = [str(name) for name in node if not (str(name).startswith("_") and str(name).endswith("_"))]
    accepted = _accepted_arguments(callable_)
    for name in names:
        if accepted is not None and name not in accepted:
            yield f"{key}.{name}: expected an argument of {target} ({', '.join(accepted)}), got {name!r}"


def _accepted_arguments(callable_: Any) -> list[str] | None:
    """Returns the names that a function or class takes, those it hands on to its bases included; None for any."""
    accepted: list[str] = []
    makers = [base.__init__ for base in callable_.__mro__] if inspect.isclass(callable_) else [callable_]
    for maker in makers:
        parameters = inspect.signature(maker).parameters.values()
        accepted += [parameter.name for parameter in parameters if parameter.name != "self"]
        if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters):
            return [name for name in dict.fromkeys(accepted) if name not in ("args", "kwargs", "options")]
    return None


def _without_hydra(cfg: DictConfig) -> DictConfig:
    return OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"])  # pyright: ignore


def _resolve_run_dir(*, _root_: DictConfig) -> str:
    # Absolute, so that Hydra does not join a sweep's directory in front of it.
    return str(locate_run(_root_, list(_root_.hydra.overrides.task), _root_.task.name).absolute())


def differences(config_path: Path, cfg: DictConfig, task: str, fold: int | None = None) -> list[str]:
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
    spec = task_spec(task)
    before, now = (result_values(values, spec.groups) for values in (stored, to_container(cfg)))
    if spec.scope == "fold":
        before["fold"], now["fold"] = stored.get("fold"), cfg.fold if fold is None else fold
    return [
        f"{key}: {value!r} there, {now.get(key)!r} here"
        for key, value in sorted(before.items())
        if now.get(key) != value
    ]


def other_folders(config_path: Path, cfg: DictConfig, keys: Sequence[str]) -> list[str]:
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
