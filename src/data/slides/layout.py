"""Finds what CLAM, and sae-1n after it, left below the folder of a data set."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

# `clam_processed/features_conch_v1` of sae-1n is two folders down.
_DEPTH = 2
_FEATURES = (("h5_files", ".h5"), ("pt_files", ".pt"))
_PATCHES = (("patches", ".h5"),)
# In a folder that is named, the files may also lie by themselves.
_LOOSE = ((".", ".h5"), (".", ".pt"))


def find_features_dir(named: str, root: str | None, backbone: Mapping[str, Any]) -> str:
    """Returns the folder of features that another program left, where the one that a configuration names has none.

    It is known by what it holds, `h5_files/*.h5` or `pt_files/*.pt`, and looked for in `root` and two folders down.
    A backbone that computes activations has those that were computed with it, and no others.

    Args:
        named: the folder that the configuration names.
        root: the folder of the data set.
        backbone: the config node.

    Returns:
        The folder found; the one named where that has features, or none is found.

    Raises:
        ValueError: when several are found.
    """
    return _find(named, root, backbone, _FEATURES, "features_dir")


def find_patches_dir(named: str, root: str | None, backbone: Mapping[str, Any]) -> str:
    """Returns the folder with `patches/*.h5`, as `find_features_dir` does that of features."""
    return _find(named, root, backbone, _PATCHES, "patches_dir")


def _find(
    named: str, root: str | None, backbone: Mapping[str, Any], contents: tuple[tuple[str, str], ...], key: str
) -> str:
    if root is None or "_target_" in backbone or _holds(Path(named), (*contents, *_LOOSE)):
        return named
    found = [str(folder) for folder in _folders(Path(root), _DEPTH) if _holds(folder, contents)]
    if len(found) > 1:
        raise ValueError(
            f"Expected one folder for dataset.{key} below {root}, got {', '.join(found)}. "
            f"Give dataset.{key}=<one of them>."
        )
    return found[0] if found else named


def _folders(folder: Path, depth: int) -> Iterator[Path]:
    """Yields a folder and those below it, sorted."""
    if not folder.is_dir():
        return
    yield folder
    if depth:
        with os.scandir(folder) as entries:
            inner = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
        for name in inner:
            yield from _folders(folder / name, depth - 1)


def _holds(folder: Path, contents: tuple[tuple[str, str], ...]) -> bool:
    for name, suffix in contents:
        if (folder / name).is_dir():
            with os.scandir(folder / name) as entries:
                if any(entry.name.endswith(suffix) and not entry.name.startswith(".") for entry in entries):
                    return True
    return False
