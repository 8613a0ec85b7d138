"""Runs a script in the environment of the peers, for tests that ask another system itself."""

import os
import subprocess
from pathlib import Path

import pytest

PYTHON = Path(".venv-bench/bin/python")


def run_in_peers(script, *arguments, needs):
    """Runs a script with the peers' Python, or skips the test where they or the module `needs` are missing."""
    if not PYTHON.is_file():
        pytest.skip(f"no {PYTHON}: make bench-env")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    guarded = f"import importlib.util, sys\nif importlib.util.find_spec({needs!r}) is None: sys.exit(77)\n{script}"
    done = subprocess.run(
        [str(PYTHON), "-W", "ignore", "-c", guarded, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
    )
    if done.returncode == 77:
        pytest.skip(f"{needs} is not installed in {PYTHON.parent.parent}")
    assert done.returncode == 0, done.stderr
