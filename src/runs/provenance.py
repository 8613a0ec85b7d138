"""What a run can say of itself later: code, machine, versions."""

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

SCHEMA_VERSION = 2
_PACKAGES = ("torch", "lightning", "hydra-core", "timm", "open_clip_torch", "h5py", "numpy", "pandas", "scikit-learn")


def describe_run(seed: int, fold: int | str | None) -> dict[str, Any]:
    """Returns the entries of a manifest that are known when a run starts."""
    import torch  # takes seconds; a finished run is told without it

    return {
        "schema_version": SCHEMA_VERSION,
        "status": "running",
        "started": now(),
        "argv": sys.argv,
        "seed": seed,
        "fold": fold,
        "git": _git(),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
        "hardware": {
            "host": platform.node(),
            "platform": platform.platform(),
            "cpus": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        },
        "slurm": {name: value for name, value in os.environ.items() if name.startswith(("SLURM_JOB", "SLURM_ARRAY"))},
        "inputs": None,
        "upstream": {},
        "outputs": [],
        "error": None,
    }


def began_before_requeue(manifest_path: Path) -> bool:
    """Whether this SLURM job began the run and was put back into the queue since: it has started the run over once."""
    if not int(os.environ.get("SLURM_RESTART_COUNT", "0")):
        return False
    try:
        job_id = json.loads(manifest_path.read_text())["slurm"]["SLURM_JOB_ID"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return job_id == os.environ["SLURM_JOB_ID"]


def now() -> str:
    """Returns the time in UTC as text."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git() -> dict[str, Any]:
    """Returns commit and dirty flag of the working directory, or why they are not known."""

    def ask(*command: str) -> str:
        done = subprocess.run(["git", *command], capture_output=True, text=True, check=True, timeout=30)
        return done.stdout.strip()

    try:
        return {"commit": ask("rev-parse", "HEAD"), "dirty": bool(ask("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError) as error:
        return {"commit": None, "dirty": None, "reason": str(error)}
