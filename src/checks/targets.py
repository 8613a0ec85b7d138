"""The classes and functions that a configuration names by `_target_`: that they exist, and take what they are given."""

import inspect
from collections.abc import Iterator, Mapping
from pkgutil import resolve_name
from typing import Any, Literal, get_args, get_origin

_NOT_ARGUMENTS = ("self", "args", "kwargs", "options")


def target_errors(node: Any, key: str = "") -> Iterator[str]:
    """Yields what is wrong with the targets of a plain configuration, and with the names and choices they are given.

    Arguments annotated as a Literal are choices. Those of tasks, which take the whole configuration, are not looked at.
    """
    if not isinstance(node, Mapping):
        return
    if "_target_" in node:
        yield from _errors_of(key, node)
    for name, child in node.items():
        yield from target_errors(child, f"{key}.{name}" if key else str(name))


def _errors_of(key: str, node: Mapping[str, Any]) -> Iterator[str]:
    target = node["_target_"]
    try:
        callable_ = resolve_name(target)
    except Exception as error:  # whatever the import raises is what the user must see
        yield f"{key}: expected _target_ to name a class or function, got {target!r} ({error})"
        return
    if key == "task":
        return
    accepted, takes_any = accepted_arguments(callable_)
    for name, value in node.items():
        if name.startswith("_") and name.endswith("_"):
            continue
        if name not in accepted:
            if not takes_any:
                yield f"{key}.{name}: expected an argument of {target} ({', '.join(accepted)}), got {name!r}"
        elif get_origin(accepted[name]) is Literal and value not in get_args(accepted[name]):
            yield f"{key}.{name}: expected one of {', '.join(get_args(accepted[name]))}, got {value!r}"


def accepted_arguments(callable_: Any) -> tuple[dict[str, Any], bool]:
    """Returns what a function or class takes and hands on to its bases.

    Returns:
        The annotations by name, and whether any other name is taken too.
    """
    accepted: dict[str, Any] = {}
    makers = [base.__init__ for base in callable_.__mro__] if inspect.isclass(callable_) else [callable_]
    for maker in makers:
        parameters = inspect.signature(maker).parameters.values()
        for parameter in parameters:
            if parameter.name not in _NOT_ARGUMENTS:
                accepted.setdefault(parameter.name, parameter.annotation)
        if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters):
            return accepted, False
    return accepted, True
