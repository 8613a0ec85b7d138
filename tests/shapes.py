"""Checks the shapes in the signatures of `src.ops`, `src.models` and `src.metrics` wherever a test calls them.

Left out are Triton's kernels, whose source its compiler reads, and the processes that tests start.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_origin

from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a function check its arguments and its result.

    Choices of words are left to it: constructors refuse others themselves, with a message for the user.
    """
    for name, hint in function.__annotations__.items():
        if get_origin(hint) is Literal:
            function.__annotations__[name] = Any
    return beartype(conf=BeartypeConf(is_pep484_tower=True))(function)  # an int is a float


def install_hook() -> None:
    """Checks modules that are imported from now on."""
    ops = (path.stem for path in Path("src/ops").glob("*.py") if not path.stem.endswith("_kernels"))
    install_import_hook([*(f"src.ops.{name}" for name in ops), "src.models", "src.metrics"], "tests.shapes.check")
