"""Fixtures shared by all tests: the folders of real data and golden numbers, when present."""

import os
from pathlib import Path

import matplotlib as mpl
import pytest

from tests.shapes import install_hook

mpl.use("Agg")

install_hook()

if "PYTEST_XDIST_WORKER" in os.environ:
    # For torch, which is imported later, and for commands that tests start: with threads for all cores each, the
    # workers would wait for one another.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the longest tests first, so that no worker ends long after the others."""
    items.sort(key=lambda item: "e2e" not in item.path.parts)
