"""Images in tar files, as webdataset packs them: the files of a sample lie together and share a name.

https://github.com/webdataset/webdataset: the name goes up to the first dot of the file's own name, and what follows
says what is in it: `000017.jpg`, `000017.txt`, `000017.json`, `000017.cls`.
"""

import logging
import os
import tarfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from src.csv_tables import some
from src.data.images.errors import ImageFileError
from src.data.images.places import DataFolder
from src.data.listing import Listing

_LOGGER = logging.getLogger(__name__)
_IMAGES = ("jpg", "jpeg", "png", "webp")


def list_tars(
    folder: str | Path, shards: Mapping[str, str | None], label: str | None = None, cases: str | None = None
) -> Listing:
    """Lists the images in the tar files of a webdataset.

    Args:
        folder: the data set's.
        shards: by part of the split, train, val or test, or `all` where there is no split, what the paths of its tar
            files look like, with `*` for anything: `cc3m-train-*.tar`; None where there is no such part.
        label: how the file of a sample is called that holds its label as text (`cls`); None: there are no labels.
        cases: likewise the file that holds its patient; None: each image is a case of its own.

    Returns:
        Columns `case_id`, `image_id` (`<path of the tar file>__<name of the sample>`), `label` and `path`.

    Raises:
        FileNotFoundError: when there is no such folder, or no tar file for a part.
        ImageFileError: when a tar file is damaged, cut off or compressed, or a sample has no label.
    """
    if folder is None or not Path(folder).is_dir():
        raise FileNotFoundError(f"Expected a folder with tar files at {folder}, found none. Give dataset.dir=<folder>.")
    found: list[tuple[str, str, tuple[int, int]]] = []
    for part, pattern in shards.items():
        if pattern is None:
            continue
        paths = sorted(path.relative_to(folder).as_posix() for path in Path(folder).glob(pattern))
        if not paths:
            raise FileNotFoundError(
                f"Expected tar files like {pattern} in {folder} for {part}, found none. Give dataset.dir=<folder>, or "
                f"dataset.listing.shards.{part}=<pattern>."
            )
        files = [DataFolder(folder).find(path, f"dataset.listing.shards.{part}") for path in paths]
        found += [(part, path, _state(file)) for path, file in zip(paths, files, strict=True)]
    return _list_found(str(folder), tuple(found), label, cases)


def read_member(path: Path, name: str) -> bytes:
    """Reads a file of a tar file.

    Raises:
        ImageFileError: when the tar file is damaged or holds no such file.
    """
    members = _members(path)
    if name not in members:
        raise ImageFileError(f"Expected {name} in {path}, got {len(members)} files without it. Run task=metadata.")
    offset, n_bytes = members[name]
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(n_bytes)


# Every step of a pipeline asks again what a data set holds, and thousands of samples are in each of hundreds of files.
@lru_cache(maxsize=1)
def _list_found(
    folder: str, found: tuple[tuple[str, str, tuple[int, int]], ...], label: str | None, cases: str | None
) -> Listing:
    """Lists tar files, of which each has a part, a path and a state."""
    columns: dict[str, list[str]] = {column: [] for column in ("case_id", "image_id", "label", "path")}
    parts: dict[str, list[str]] = {}
    for part, path, _ in found:
        first = len(columns["image_id"])
        _list_tar(Path(folder) / path, path, label, cases, columns)
        parts.setdefault(part, []).extend(columns["image_id"][first:])
    return Listing(columns, None if set(parts) == {"all"} else parts)


def _list_tar(path: Path, place: str, label: str | None, cases: str | None, columns: Mapping[str, list[str]]) -> None:
    samples: dict[str, dict[str, str]] = {}
    for name in _members(path):
        folders, _, file = name.removeprefix("./").rpartition("/")
        key, _, kind = file.partition(".")
        samples.setdefault(f"{folders}/{key}" if folders else key, {})[kind.lower()] = name
    without = []
    for key, files in samples.items():
        image = next((files[kind] for kind in _IMAGES if kind in files), None)
        if image is None:
            without.append(key)
            continue
        item_id = f"{place.removesuffix('.tar')}/{key}".replace("/", "__")
        columns["image_id"].append(item_id)
        columns["case_id"].append(item_id if cases is None else _text(path, key, files, cases))
        columns["label"].append("" if label is None else _text(path, key, files, label))
        columns["path"].append(f"{place}/{image}")
    if without:
        _LOGGER.info("Left out %d samples of %s that have no image: %s", len(without), path, some(without))


def _text(path: Path, key: str, files: Mapping[str, str], kind: str) -> str:
    if kind not in files:
        raise ImageFileError(f"Expected a file {key}.{kind} in {path}, got {sorted(files.values())}.")
    return read_member(path, files[kind]).decode().strip()


def _members(path: Path) -> dict[str, tuple[int, int]]:
    return _read_members(path, _state(path))


def _state(path: Path) -> tuple[int, int]:
    """Returns the size in bytes and the time of change in nanoseconds of a file."""
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


# Images are read in the order of the tar files; each is kept until its last image is read, also by several threads.
@lru_cache(maxsize=16)
def _read_members(path: Path, _: tuple[int, int]) -> dict[str, tuple[int, int]]:
    """Returns where the files of a tar file lie in it: offset and size in bytes, by name."""
    try:
        with tarfile.open(path, "r:") as file:
            members = {member.name: (member.offset_data, member.size) for member in file if member.isfile()}
            # tarfile stops without a word where a file is cut off between two members: a block of zeros must follow.
            with open(path, "rb") as whole:
                whole.seek(file.offset)
                if whole.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
                    raise tarfile.ReadError(f"no end of the archive after {len(members)} files")
            return members
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ImageFileError(
            f"Expected a whole tar file that is not compressed at {path}, got {error}. Copy it again, or unpack it "
            "with gunzip."
        ) from error
