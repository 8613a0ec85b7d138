"""Opening other systems' h5 files, with errors that say what to do."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py

_LOCK_REFUSED = (errno.EAGAIN, errno.ENOLCK)
REMEDY = "Extract the slide again (task=embed), or leave it out with dataset.on_bad_file=skip."


class FeatureFileError(ValueError):
    """A feature file that cannot be used; the message names the file and says what to do."""


@contextmanager
def open_h5(path: Path) -> Iterator[h5py.File]:
    """Opens an h5 file for one read; a handle is never kept, so none crosses a fork.

    Raises:
        FeatureFileError: when HDF5 cannot read the file, or a part of it that is read while it is open.
        OSError: when a network file system refuses the lock, which is no fault of the file.
    """
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
        raise FeatureFileError(f"Expected a readable HDF5 file at {path}, got {error}. {REMEDY}") from error
