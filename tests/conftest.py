"""Fixtures shared by all tests: the folders of real data and golden numbers, when present."""

import os
from pathlib import Path

import matplotlib as mpl
import pytest

from tests.shapes import install_hook

mpl.use("Agg")

install_hook()


def _folder(variable: str, default: str) -> Path:
    path = Path(os.environ.get(variable, default))
    if not path.is_dir():
        pytest.skip(f"{variable} names no folder ({path})")
    return path


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Reference inputs and outputs of the systems that Loupe replaces."""
    return _folder("LOUPE_GOLDEN", "../shared/golden")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Real data sets."""
    return _folder("LOUPE_DATA", "../shared/data")


# Their fixtures take long and serve a whole file: one process makes them, once.
_KEPT_TOGETHER = (
    "tests/e2e/",
    "tests/training/test_ddp",
    "tests/tasks/test_slide_tasks",
    "tests/ops/test_triton_kernels",
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keeps the tests of some files in one process of `pytest -n`."""
    for item in items:
        if item.nodeid.startswith(_KEPT_TOGETHER):
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
