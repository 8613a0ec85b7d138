"""The classes and functions that a configuration names by `_target_`: that they exist, and take what they are given."""

from collections.abc import Iterator, Mapping
from pkgutil import resolve_name
from typing import Any, Literal, get_args, get_origin

from src.checks.arguments import accepted_arguments


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
            if not takes_any and name != "name":
                yield f"{key}.{name}: expected an argument of {target} ({', '.join(accepted)}), got {name!r}"
        elif get_origin(accepted[name]) is Literal and value not in get_args(accepted[name]):
            yield f"{key}.{name}: expected one of {', '.join(get_args(accepted[name]))}, got {value!r}"
