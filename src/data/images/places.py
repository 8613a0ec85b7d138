"""Where an image lies: a file below the data set's folder, an entry of an array in one, or a member of a tar file."""

import os
import re
from pathlib import Path, PurePosixPath
from typing import NamedTuple

_ENTRY = re.compile(r"(?P<file>.+?\.np[yz]|(?:.*/)?[^/.]+)(?:/(?P<key>[^/]+))?\[(?P<index>\d+)\]")
_MEMBER = re.compile(r"(?P<file>.+?\.tar)/(?P<key>.+)")


class Place(NamedTuple):
    """What the column `path` of a csv says.

    Spelled `folder/name.jpg`, `folder/images.npz[17]`, `folder/images.npz/train_images[17]` where the file holds
    several arrays, `folder/data_batch_1[17]`, or `folder/shard.tar/000017.jpg`.

    Attributes:
        file: below the data set's folder, with "/".
        index: of the image in an array; None where there is no array.
        key: of the array in an npz file, None where it has one only; the name of the image in a tar file.
    """

    file: str
    index: int | None = None
    key: str | None = None


def parse_place(text: str) -> Place:
    """Reads an entry of the column `path`."""
    if match := _ENTRY.fullmatch(text):
        return Place(match["file"], int(match["index"]), match["key"])
    if match := _MEMBER.fullmatch(text):
        return Place(match["file"], None, match["key"])
    return Place(text)


def names_outside(text: str) -> bool:
    """Whether a path is empty, absolute or goes up, and so does not name a file below a folder."""
    if text and ".." not in text and text[0] != "/":
        return False
    return not text or text[0] == "/" or ".." in PurePosixPath(text).parts


class DataFolder:
    """A folder that nothing outside of is read from: a path that leaves it, also by a link, is an error.

    Args:
        folder: the folder; may itself be a link.
    """

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder)
        self._real = os.path.realpath(self.path)
        self._inside: set[str] = set()

    def find(self, file: str, source: str) -> Path:
        """Returns the path of a file.

        Args:
            file: relative to the folder.
            source: where it is named, for messages: `<csv>, line 7`.

        Raises:
            ValueError: when it lies elsewhere.
            FileNotFoundError: when there is none.
        """
        if names_outside(file):
            raise outside(file, source)
        path = os.path.join(self.path, file)
        parent = os.path.dirname(path)
        if os.path.islink(path):
            self._refuse_outside(path, file, source)
        elif parent not in self._inside:
            self._refuse_outside(parent, file, source)
            self._inside.add(parent)
        if not os.path.isfile(path):
            raise FileNotFoundError(
                f"Expected an image at {path}, as {source} says, found no such file. Copy it there, or take it out of "
                "the csv."
            )
        return Path(path)

    def _refuse_outside(self, path: str, file: str, source: str) -> None:
        real = os.path.realpath(path)
        if real != self._real and not real.startswith(self._real.rstrip(os.sep) + os.sep):
            raise outside(f"{file}, a link to {real}", source)


def find_source(folder: str | Path | None, file: str) -> Path:
    """Returns the path of a file that lists images: a csv, a text file or the like.

    Raises:
        FileNotFoundError: when there is none.
    """
    if folder is None or not (path := Path(folder) / file).is_file():
        raise FileNotFoundError(
            f"Expected {file} in {folder}, found no such file. Give dataset.dir=<folder>, or name the file in "
            "dataset.listing."
        )
    return path


def outside(file: str, source: str) -> ValueError:
    """Returns the error for a path that leaves the data set's folder."""
    return ValueError(
        f"Expected a path below dataset.dir in {source}, got {file!r}. Give the folder that holds all images as "
        "dataset.dir, or copy the file there."
    )
