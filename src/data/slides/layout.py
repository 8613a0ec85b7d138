"""Finds what CLAM, and sae-1n after it, left below the folder of a data set."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from src.folder_names import computes_activations

# `clam_processed/features_conch_v1` of sae-1n is two folders down.
_DEPTH = 2
_FEATURES = (("h5_files", ".h5"), ("pt_files", ".pt"))
_PATCHES = (("patches", ".h5"),)
# In a folder that is named, the files may also lie by themselves.
_LOOSE = ((".", ".h5"), (".", ".pt"))


def find_features_dir(named: str, root: str | None, backbone: Mapping[str, Any]) -> str:
    """Returns the folder of features that another program left, where the one that a configuration names has none.

    It is known by what it holds, `h5_files/*.h5` or `pt_files/*.pt`, and looked for in `root` and two folders down.
    A backbone that computes activations has those that were computed with it, and no others; what task=embed or
    task=tile made under other values is not taken either.

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
    named: str, root: str | None, backbone: Mapping[str, Any], contents: Sequence[tuple[str, str]], key: str
) -> str:
    if root is None or computes_activations(backbone) or _has_any(Path(named), contents):
        return named
    found = [str(folder) for folder in _folders(Path(root), _DEPTH) if _is_of_others(_first_file(folder, contents))]
    if len(found) > 1:
        raise ValueError(
            f"Expected one folder for dataset.{key} below {root}, got {', '.join(found)}. "
            f"Give dataset.{key}=<one of them>."
        )
    return found[0] if found else named


def _has_any(folder: Path, contents: Sequence[tuple[str, str]]) -> bool:
    return _first_file(folder, (*contents, *_LOOSE)) is not None


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


def _first_file(folder: Path, contents: Sequence[tuple[str, str]]) -> Path | None:
    """Returns one of the files that a folder is known by; None where it has none of them."""
    for name, suffix in contents:
        if (folder / name).is_dir():
            with os.scandir(folder / name) as entries:
                for entry in entries:
                    if entry.name.endswith(suffix) and not entry.name.startswith("."):
                        return Path(entry.path)
    return None


def _is_of_others(file: Path | None) -> bool:
    """Whether another program made a file; those of task=tile and task=embed say what they were made with."""
    if file is None:
        return False
    import h5py  # most starts look at no file

    try:
        with h5py.File(file, locking=False) as opened:
            return not {"settings", "spec"} & set(opened.attrs)
    except OSError:  # a pt file, or a damaged one, which is told when it is read
        return True
