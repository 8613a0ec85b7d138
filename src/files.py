"""Files appear whole or not at all, and are known by their content."""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import xxhash

_CHUNK_BYTES = 1 << 20
_PARTIAL = ".partial"


@contextmanager
def write_atomically(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path in the folder of `path`; renames it on success, removes it on failure.

    A reader sees the old file or the new one, never half of it, also after a kill. The temporary name keeps the
    suffix, because some writers choose the format by it; `remove_leftovers` knows it.

    Args:
        path: the file to write; its folder is made when missing.

    Yields:
        The path to write to instead.

    Raises:
        OSError: with the name of the final file, when the disk is full or the folder cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=f"{_PARTIAL}{path.suffix}", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes private files; a result is readable like any other file of the user.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    except OSError as error:
        message = (
            f"Could not write {path}: {error.strerror or error}. Nothing was left behind; free space and start again."
        )
        raise OSError(error.errno, message) from error
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path, recursive: bool = False) -> None:
    """Removes what `write_atomically` leaves behind when its process is killed.

    Args:
        folder: where nobody writes meanwhile, one's own run directory under its lock; may be missing.
        recursive: whether to look in its subfolders too.
    """
    for path in folder.rglob(".*") if recursive else folder.glob(".*"):
        if is_leftover(path) and path.is_file():
            path.unlink(missing_ok=True)


def is_leftover(path: Path) -> bool:
    """Whether a file has a name that `write_atomically` gives while it writes."""
    return path.name.startswith(".") and (path.stem.endswith(_PARTIAL) or path.name.endswith(_PARTIAL))


def digest_file(path: str | os.PathLike[str]) -> str:
    """Returns the blake2b digest (32 hex digits) of a file's bytes."""
    hasher = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            hasher.update(chunk)
    return hasher.hexdigest()


def start_array_digest(shape: tuple[int, ...]) -> "xxhash.xxh3_128":
    """Returns a hasher that digests as `digest_array` does, once the float32 values of such an array were given to it.

    For arrays that are never whole in memory: `update` takes C-contiguous pieces, in order.
    """
    return xxhash.xxh3_128(repr(tuple(int(size) for size in shape)).encode())


def digest_array(array: np.ndarray) -> str:
    """Returns the xxh3 digest (32 hex digits) of an array's shape and float32 values.

    XXH3 in its 128-bit form (Collet, https://xxhash.com) runs at the speed of memory, so packing can afford it. It is
    no cryptographic hash: it finds accidents and copies, not forgeries. The array is taken as float32, so the h5 and
    the pt of one slide, or its fp32 copy of an fp16 file, digest alike.
    """
    contiguous = np.ascontiguousarray(array, dtype=np.float32)
    hasher = start_array_digest(contiguous.shape)
    hasher.update(contiguous.data)
    return hasher.hexdigest()


def digest_text(text: str, length: int = 32) -> str:
    """Returns the first `length` hex digits of the blake2b digest of a text."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()[:length]


def list_files(folder: Path, pattern: str = "*") -> list[Path]:
    """Returns what of a folder matches, sorted, without names that start with a dot.

    Those are nobody's slides, features or images: unfinished files of a writer, or what a system keeps of its own.
    """
    return sorted(path for path in folder.glob(pattern) if not path.name.startswith("."))
