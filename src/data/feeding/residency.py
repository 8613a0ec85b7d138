"""Decides where the rows of a training run lie: on the GPU, in memory, or on disk."""

import logging
from pathlib import Path

import torch

_LOGGER = logging.getLogger(__name__)

RESIDENCIES = ("auto", "gpu", "ram", "mmap", "stream")
# The rest is for the model, blocks that are in use, and who else works on the machine.
_SHARE = 0.5
_GIB = 2**30
# Files of a cgroup with its limit and what is used, and the key in memory.stat of page cache that can be dropped.
_VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_VERSION_2 = ("memory.max", "memory.current", "inactive_file")


def choose_residency(
    requested: str, n_bytes: int, free_ram: int | None, free_gpu: int | None, is_computed: bool = False
) -> tuple[str, str]:
    """Returns the residency and why, in words. It changes the speed and the memory taken, never the weights.

    Args:
        requested: one of RESIDENCIES; `auto` takes the first of gpu, ram and mmap with room: half of what is free.
        n_bytes: of the rows as stored.
        free_ram: bytes this process may still take; None when the system does not say, `auto` then takes `mmap`.
        free_gpu: bytes free on the CUDA device that trains; None when another device does.
        is_computed: whether rows are computed when read, rather than lying on disk: `auto` then takes `stream`, since
            holding them would take a pass over all images first.

    Raises:
        ValueError: when there is no such residency, or no CUDA device where one is asked for.
    """
    if requested not in RESIDENCIES:
        raise ValueError(f"Expected train.residency to be one of {', '.join(RESIDENCIES)}, got {requested!r}.")
    if requested == "gpu" and free_gpu is None:
        raise ValueError(
            "Expected a CUDA device to train on for train.residency=gpu, got none: give train.residency=auto, ram or "
            "mmap, or trainer.accelerator=gpu on a machine that has one."
        )
    if requested != "auto":
        return requested, "as asked for"
    if is_computed:
        return "stream", "the rows are computed from images"
    if free_gpu is not None and n_bytes <= _SHARE * free_gpu:
        return "gpu", f"they take at most half of the {free_gpu / _GIB:.1f} GiB free on the GPU"
    if free_ram is None:
        return "mmap", "the system does not say how much memory is free"
    if n_bytes <= _SHARE * free_ram:
        return "ram", f"they take at most half of the {free_ram / _GIB:.1f} GiB of free memory"
    return "mmap", f"they take more than half of the {free_ram / _GIB:.1f} GiB of free memory"


def free_ram(n_sharing: int = 1, proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Returns the bytes that one of `n_sharing` like processes may still take; None where there is no /proc (macOS).

    What Linux calls available (free, or page cache it can drop), and what the cgroups of the process allow, version 1
    and 2 (Linux kernel, admin-guide/cgroup-v1/memory.rst and cgroup-v2.rst): a SLURM job or a container may have much
    less than the machine.
    """
    meminfo = proc / "meminfo"
    if not meminfo.is_file():
        return None
    stated = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
    free = [1024 * int(stated["MemAvailable"].split()[0])]
    groups = proc / "self" / "cgroup"
    for line in groups.read_text().splitlines() if groups.is_file() else ():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            names, root = _VERSION_2, cgroups
        elif "memory" in controllers.split(","):
            names, root = _VERSION_1, cgroups / "memory"
        else:
            continue
        # Limits of the groups above hold too. In a container the path may be the host's, and its own limit at the root.
        folder = root / path.lstrip("/")
        while folder.is_relative_to(root):
            free += _free_of_cgroup(folder, *names)
            folder = folder.parent
    return max(0, min(free)) // n_sharing


def free_gpu(device: torch.device) -> int | None:
    """Returns the bytes free on a CUDA device; None for another device."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None


def _free_of_cgroup(folder: Path, limit_file: str, used_file: str, droppable_key: str) -> list[int]:
    limit, used, statistics = folder / limit_file, folder / used_file, folder / "memory.stat"
    if not (limit.is_file() and used.is_file()) or limit.read_text().strip() == "max":
        return []
    lines = statistics.read_text().splitlines() if statistics.is_file() else []
    droppable = sum(int(line.split()[1]) for line in lines if line.startswith(f"{droppable_key} "))
    return [int(limit.read_text()) - int(used.read_text()) + droppable]
