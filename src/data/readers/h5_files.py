"""Opening other systems' h5 files, with errors that say what to do."""

import errno
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

_LOCK_REFUSED = (errno.EAGAIN, errno.ENOLCK)
REMEDY = "Extract the slide again (task=embed), or leave it out with dataset.on_bad_file=skip."
RECUT = "Make the file again with task=tile."

# Compressed features shrink by 1.1 to 20 times, hardly more where most are zero. Deflate reaches 1032, for zeros alone.
_MOST_EXPANSION = 250
_HARMLESS_BYTES = 64 << 20


class FeatureFileError(ValueError):
    """A feature file that cannot be used; the message names the file and says what to do."""


@contextmanager
def open_h5(path: Path, remedy: str = REMEDY) -> Iterator[h5py.File]:
    """Opens an h5 file; what fails in the block counts as the file's fault.

    Raises:
        FeatureFileError: when HDF5 cannot read the file, or a part of it that is read while it is open.
        OSError: when a network file system refuses the lock, which is no fault of the file.
    """
    if path.exists() and not path.is_file():  # opening a pipe would wait for ever
        raise FeatureFileError(f"Expected an HDF5 file at {path}, got no regular file. {remedy}")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, RuntimeError, KeyError) as error:
        # KeyError and RuntimeError are what h5py raises on damaged groups and chunks.
        if "lock file" in str(error) or getattr(error, "errno", None) in _LOCK_REFUSED:
            raise OSError(
                f"Expected HDF5 to lock {path} for reading, got {error}. Network file systems often refuse locks: "
                "set the environment variable HDF5_USE_FILE_LOCKING=FALSE and start again."
            ) from error
        raise FeatureFileError(f"Expected a readable HDF5 file at {path}, got {error}. {remedy}") from error


def find_dataset(file: h5py.File, name: str, path: Path, remedy: str = REMEDY) -> h5py.Dataset | None:
    """Returns a dataset of numbers whose values all lie in this file; None when the file has no dataset of that name.

    Nothing is read but headers and the list of chunks, and nothing is allocated for the values.

    Raises:
        FeatureFileError: when the values would come from other files (links, external storage, virtual datasets), are
            no numbers, or the file lacks some: HDF5 makes up what was never written, of any size.
    """
    if isinstance(file.get(name, getlink=True), h5py.ExternalLink):
        raise _elsewhere(name, path, "a link to another file")
    dataset = file.get(name)
    if not isinstance(dataset, h5py.Dataset):
        return None
    if dataset.file.filename != file.filename:
        raise _elsewhere(name, path, "a link to another file")
    created = dataset.id.get_create_plist()
    if created.get_external_count() or dataset.is_virtual:
        raise _elsewhere(name, path, "storage in other files")
    if dataset.dtype.kind not in "iuf":
        raise FeatureFileError(f"Expected numbers as {name} in {path}, got {dataset.dtype}. {remedy}")
    if not _is_whole(dataset, created.get_nfilters() > 0):
        raise FeatureFileError(
            f"Expected {_declared(dataset):,} bytes of {name} in {path}, as its shape {dataset.shape} says, got "
            f"{dataset.id.get_storage_size():,} in the file: not all of it was written. {remedy}"
        )
    return dataset


def patch_size_level0(attributes: Mapping[str, Any]) -> int | None:
    """Returns the level-0 edge of a patch from h5 attributes; None when they do not state it: it is never guessed.

    TRIDENT (and Loupe) write `patch_size_level0`. CLAM writes `patch_size`, in pixels of the level the patch was read
    from, with that level's `downsample`; a patch then covers `patch_size * int(downsample)` level-0 pixels (CLAM
    truncates the level's downsample too). A `patch_size` alone says nothing about level 0.

    Args:
        attributes: of the h5 file and of its `coords`.
    """
    stated = attributes.get("patch_size_level0")
    # TRIDENT stores what it does not know as the string 'None'.
    if stated is not None and not isinstance(stated, str | bytes):
        return int(stated)
    if "patch_size" in attributes and "downsample" in attributes:
        return int(attributes["patch_size"]) * int(np.ravel(attributes["downsample"])[0])
    return None


def read_patch_coords(path: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """Returns the coords [n_patches, 2] in a patch file, and their attributes.

    Raises:
        FeatureFileError: when the file is damaged, or holds no coords.
    """
    with open_h5(path, RECUT) as file:
        dataset = find_dataset(file, "coords", path, RECUT)
        if dataset is None or dataset.ndim != 2 or dataset.shape[1] != 2:
            found = sorted(file) if dataset is None else dataset.shape
            raise FeatureFileError(f"Expected a dataset coords [n_patches, 2] in {path}, got {found}. {RECUT}")
        return np.asarray(dataset), dict(dataset.attrs)


def _declared(dataset: h5py.Dataset) -> int:
    return (dataset.size or 0) * dataset.dtype.itemsize


def _is_whole(dataset: h5py.Dataset, is_filtered: bool) -> bool:
    """Whether the file holds as much as the shape promises, as far as that shows without reading."""
    declared, stored = _declared(dataset), dataset.id.get_storage_size()
    if dataset.chunks is None or not dataset.size:
        return stored >= declared
    n_chunks = math.prod(-(-size // edge) for size, edge in zip(dataset.shape, dataset.chunks, strict=True))
    most = max(_HARMLESS_BYTES, _MOST_EXPANSION * stored) if is_filtered else stored
    return dataset.id.get_num_chunks() == n_chunks and declared <= most


def _elsewhere(name: str, path: Path, found: str) -> FeatureFileError:
    return FeatureFileError(
        f"Expected the values of {name} in {path} itself, got {found}, which is not followed. Copy them into the file, "
        "or leave the slide out with dataset.on_bad_file=skip."
    )
