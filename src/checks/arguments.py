"""The arguments that a function or class takes."""

import inspect
from typing import Any

_NOT_ARGUMENTS = ("self", "args", "kwargs", "options")


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
