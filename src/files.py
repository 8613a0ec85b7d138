"""Files appear whole or not at all, and are known by their content."""

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
import yaml

_CHUNK_BYTES = 1 << 20
_PARTIAL = ".partial"
_STEM_CHARACTERS = 50
# Up to this size a file is synced, which takes 0.3 ms on a local SSD. Larger ones would be waited for.
_SYNCED_BYTES = 8 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT)
_PROBE_BYTES = 1 << 20


@contextmanager
def write_atomically(path: str | os.PathLike[str], n_bytes: int = 0, durable: bool = False) -> Iterator[Path]:
    """Yields a temporary path in the folder of `path`; renames it on success, removes it on failure.

    A reader sees the old file or the new one, never half of it, also after a kill. A file of up to 8 MiB is on the disk
    before it is renamed, and so is its name when this returns: a power cut leaves no empty file either. The temporary
    name keeps the suffix, because some writers choose the format by it; `remove_leftovers` knows it.

    Args:
        path: the file to write; its folder is made when missing.
        n_bytes: how large it will be at least, where that is known: without so much space nothing is begun.
        durable: whether to wait for the disk with a larger file too.

    Yields:
        The path to write to instead.

    Raises:
        OSError: with the name of the final file, when the disk is full (ENOSPC, whatever the writer raises then, with
            what was needed and what is free) or the folder cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(path.parent).free < n_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        # Short, because names of slides may be as long as names can be.
        prefix = f".{path.stem[:_STEM_CHARACTERS]}."
        handle, name = tempfile.mkstemp(prefix=prefix, suffix=f"{_PARTIAL}{path.suffix}", dir=path.parent)
    except OSError as error:
        raise _explain(error, path, n_bytes, is_full=_names_full_disk(error)) from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes private files; a result is readable like any other file of the user.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        is_synced = durable or temporary.stat().st_size <= _SYNCED_BYTES
        if is_synced:
            _sync(temporary)
        temporary.replace(path)
        if is_synced:
            _sync(path.parent)
    except Exception as error:
        written = temporary.stat().st_size if temporary.exists() else 0
        is_full = _names_full_disk(error) or _has_no_space(temporary)
        if temporary.exists():  # the free space is read next, and the writer may still hold the file open
            os.truncate(temporary, 0)
            temporary.unlink()
        if is_full or isinstance(error, OSError):
            raise _explain(error, path, max(n_bytes, written), is_full) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_even_when_full(path: Path, text: str) -> None:
    """Writes a small text as `write_atomically` does, and where the disk is full over the old text of the file.

    The old text takes up its space already. For the state of a run: that it failed must not be lost because it failed
    on a full disk. A text that is longer than the blocks of the old file needs space too.

    Raises:
        OSError: when there is no space and no old file, or it is too short.
    """
    try:
        with write_atomically(path) as temporary:
            temporary.write_text(text)
    except OSError as error:
        if error.errno != errno.ENOSPC or not path.is_file():
            raise
        with open(path, "r+b", buffering=0) as file:
            file.write(text.encode())
            file.truncate()
            os.fsync(file.fileno())


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


def _explain(error: Exception, path: Path, n_bytes: int, is_full: bool) -> OSError:
    """Returns one error for a file that could not be written, whatever its writer raised."""
    if not is_full:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        number = (error.errno if isinstance(error, OSError) else None) or errno.EIO
        return OSError(number, f"Could not write {path}: {reason}. Nothing was left behind; mend that and start again.")
    free = shutil.disk_usage(_nearest(path.parent)).free
    needed = f"at least {_readable(n_bytes)}" if n_bytes else "more"
    return OSError(
        errno.ENOSPC,
        f"Could not write {path}: {os.strerror(errno.ENOSPC)}: it needs {needed}, and {_readable(free)} of the disk is "
        "free. Nothing was left behind; free space and start again.",
    )


def _nearest(folder: Path) -> Path:
    """Returns the folder itself, or the innermost one above that is there."""
    return next(parent for parent in (folder, *folder.absolute().parents) if parent.is_dir())


def _names_full_disk(error: BaseException) -> bool:
    """Whether an error is that of a full disk or quota; h5py, safetensors and numpy say so in the text alone."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    numbers = "|".join(str(number) for number in _FULL)
    return re.search(rf"(errno =|os error) ({numbers})\b|Not enough free space", str(error)) is not None


def _has_no_space(temporary: Path) -> bool:
    """Whether nothing can be written any more: torch and numpy raise errors that do not say why."""
    try:
        with open(temporary, "ab") as file:
            file.write(bytes(_PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.errno in _FULL
    return False


def _sync(path: Path) -> None:
    """Waits until a file, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that cannot do it with folders
            raise
    finally:
        os.close(handle)


def _readable(n_bytes: int) -> str:
    """Spells a size: 4.2 MB."""
    size, unit = float(n_bytes), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if size < 1000:
            break
        size, unit = size / 1000, larger
    return f"{size:.3g} {unit}"


def read_yaml(path: Path) -> Any:
    """Reads plain YAML; in a tenth of OmegaConf's time, and a start reads many files."""
    return yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def read_json_object(path: Path, remedy: str) -> dict[str, Any]:
    """Reads a JSON object.

    Args:
        path: the file.
        remedy: what to do when it cannot be read, for the message.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it holds something else.
    """
    if not path.is_file():
        raise FileNotFoundError(f"Expected {path}, found no such file. {remedy}")
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"Expected JSON in {path}, got {error}. {remedy}") from error
    if not isinstance(content, dict):
        raise ValueError(f"Expected a JSON object in {path}, got {type(content).__name__}. {remedy}")
    return content


def digest_file(path: str | os.PathLike[str], hasher: "hashlib.blake2b | xxhash.xxh3_128 | None" = None) -> str:
    """Returns the digest (32 hex digits) of a file's bytes: blake2b's, or that of a hasher that is given."""
    hasher = hasher or hashlib.blake2b(digest_size=16)
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
