"""Golden numbers hold with and without screening."""

import pytest

from src.models.saes.core import SAECore
from src.models.saes.k_sparse import KSparse
from src.models.saes.penalized import Penalized
from src.ops import screening


def pytest_generate_tests(metafunc):
    """Runs the tests of golden numbers twice."""
    if "golden" in metafunc.module.__name__:
        metafunc.fixturenames.append("is_screened")
        metafunc.parametrize("is_screened", [False, True], ids=["product", "screened"], indirect=True)


@pytest.fixture
def is_screened(request, monkeypatch):
    """Forces screening on: at any size, and however many candidates there are."""
    if request.param:
        monkeypatch.setattr(SAECore, "screening", True)
        for family in (Penalized, KSparse):
            monkeypatch.setattr(family, "screens", True)
        monkeypatch.setattr(screening, "_MOST_CANDIDATES", 1.0)
    return request.param
