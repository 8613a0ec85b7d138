"""What tasks declare of themselves in conf/task/*.yaml, and what follows from it."""

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from src.files import read_yaml

SCOPES = ("none", "dataset", "name", "fold")
# In place of a list of upstream tasks.
STEPS, PAGES = "steps", "pages"


@dataclass(frozen=True)
class TaskSpec:
    """A task as its YAML declares it.

    Attributes:
        name: the task.
        target: dotted path of its function.
        scope: `fold` (one run a fold), `name` (one run for all folds), `dataset` (one run for a folder of data) or
            `none` (leaves no run).
        upstream: the tasks whose runs it reads, where they are there; `steps` of the pipeline or all with `pages`.
        groups: the config groups that shape its own result.
        needs: the keys of `dataset` that it reads files of.
        needs_to_stream: the same with train.residency=stream, where that differs.
        writes: the keys of `dataset` that name what a task of scope dataset writes.
        order: of its page in the report; None when it has no page.
        run_key: the key that names a run of it explicitly, e.g. `sae_run`.
        is_step: whether the pipeline runs it.
        gathers: whether it shows what other runs left, and is made again whenever that has changed.
        gathers_draws: whether that is of all repeats and seeds too, where none was chosen.
        starts_processes: whether each of several trainer.devices gets a process.
        fits: whether it needs train items, which fold=all has none of.
        node: the declaration as it stands in the configuration.
    """

    name: str
    target: str
    scope: str
    upstream: tuple[str, ...] | str = ()
    groups: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    needs_to_stream: tuple[str, ...] | None = None
    writes: tuple[str, ...] = ()
    order: int | None = None
    run_key: str | None = None
    is_step: bool = True
    gathers: bool = False
    gathers_draws: bool = False
    starts_processes: bool = False
    fits: bool = False
    node: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @classmethod
    def from_node(cls, node: Mapping[str, Any], source: str) -> "TaskSpec":
        """Reads the node `task` of a YAML.

        Raises:
            ValueError: when a key is unknown, missing, or the scope is none of the four.
        """
        names = {"_target_": "target", "step": "is_step"}
        values: dict[str, Any] = {
            names.get(key, key): tuple(value) if isinstance(value, list) else value for key, value in node.items()
        }
        try:
            spec = cls(**values, node=node)
        except TypeError as error:
            raise ValueError(f"Expected the declaration of a task in {source}, got one with an {error}.") from None
        if spec.scope not in SCOPES:
            raise ValueError(
                f"Expected task.scope of {spec.name} to be one of {', '.join(SCOPES)}, got {spec.scope!r}."
            )
        return spec


@functools.cache
def read_tasks(folders: tuple[Path, ...]) -> "TaskGraph":
    """Reads the declarations `task/*.yaml` of configuration folders; of two for one task the last holds.

    Raises:
        ValueError: when a declaration is wrong.
    """
    paths = {path.stem: path for folder in folders for path in sorted((folder / "task").glob("*.yaml"))}
    nodes = {path: read_yaml(path)["task"] for path in paths.values()}
    return TaskGraph(TaskSpec.from_node(node, str(path)) for path, node in nodes.items())


class TaskGraph:
    """All tasks, and which of them read each other's runs.

    Args:
        specs: the tasks.

    Raises:
        ValueError: when a task names an upstream that is none, or tasks wait for each other.
    """

    def __init__(self, specs: Iterable[TaskSpec]) -> None:
        self._specs = {spec.name: spec for spec in sorted(specs, key=lambda spec: (spec.order or 1000, spec.name))}
        self._sorted: list[str] = []
        for task in self._specs:
            self._visit(task, ())

    def __getitem__(self, task: str) -> TaskSpec:
        """Returns a task.

        Raises:
            ValueError: when there is no such task.
        """
        if task not in self._specs:
            raise ValueError(f"Expected a task among {sorted(self._specs)}, got {task!r}.")
        return self._specs[task]

    @property
    def steps(self) -> list[TaskSpec]:
        """The tasks that the pipeline runs, each after those that it reads; else in the order of their pages."""
        found = [self._specs[task] for task in self._sorted]
        return [spec for spec in found if spec.is_step and spec.scope != "none"]

    @property
    def pages(self) -> list[TaskSpec]:
        """The tasks with a page in the report, in its order."""
        return [spec for spec in self._specs.values() if spec.order is not None]

    def upstream(self, task: str) -> tuple[str, ...]:
        """Returns the tasks whose runs a task reads.

        The pipeline of a fold does not depend on what gathers all folds.
        """
        upstream = self[task].upstream
        if upstream == STEPS:
            return tuple(spec.name for spec in self.steps if spec.scope != "name")
        if upstream == PAGES:
            return tuple(spec.name for spec in self.pages)
        return tuple(upstream)

    def before(self, task: str, given: Iterable[str] = ()) -> list[str]:
        """Returns all tasks that a task depends on, and the task itself as the last.

        Args:
            task: the task.
            given: tasks whose runs are named explicitly; what those were made from is not looked for.
        """
        found: dict[str, None] = {}

        def visit(name: str) -> None:
            upstream = () if name in given and name != task else self.upstream(name)
            for one in upstream:
                if one not in found:
                    visit(one)
            found[name] = None

        visit(task)
        return list(found)

    def groups(self, task: str, given: Iterable[str] = ()) -> set[str]:
        """Returns the config groups that shape a task's result, by itself and through its upstreams; see `before`."""
        names = self.before(task, given)
        if self[task].upstream == STEPS:
            names += [spec.name for spec in self.steps]
        return {group for name in names if name == task or name not in given for group in self[name].groups}

    def given(self, config: Mapping[str, Any]) -> dict[str, str]:
        """Returns the runs that a configuration names explicitly: task to directory."""
        keys = {spec.name: spec.run_key for spec in self._specs.values() if spec.run_key is not None}
        return {task: config[key] for task, key in keys.items() if config.get(key) is not None}

    def _visit(self, task: str, path: tuple[str, ...]) -> None:
        if task in path:
            raise ValueError(f"Expected tasks that do not wait for each other, got {' -> '.join((*path, task))}.")
        upstream = self[task].upstream
        if task in self._sorted:
            return
        for one in upstream if isinstance(upstream, tuple) else ():
            if one not in self._specs:
                raise ValueError(f"Expected upstream tasks of {task} among {sorted(self._specs)}, got {one!r}.")
            self._visit(one, (*path, task))
        self._sorted.append(task)
