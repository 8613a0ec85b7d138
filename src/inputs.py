"""What a run read: a list with a digest each, to compare with what is there when the run is looked at again."""

import csv
import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from src.files import digest_file, digest_text, write_atomically

RUN = "run"
"""The kind of input that is another run; its digest is that of the run's results."""
_END_BYTES = 1 << 20


@dataclass(frozen=True)
class Input:
    """One thing that a run read.

    Attributes:
        what: the kind, and the parts of the split that it covers: `labels train+val`, `slides all`, `run`.
        name: which one, where a kind has several: a file, a task.
        path: where it was.
        bytes: its size; 0 where it is no file.
        time: when it was changed last, in ns since 1970; 0 where it is no file.
        digest: of what was read of it.
    """

    what: str
    name: str
    path: str
    bytes: int
    time: int
    digest: str

    @property
    def key(self) -> tuple[str, str]:
        """What it is compared by; not the path: data and runs may be moved."""
        return self.what, self.name

    def __str__(self) -> str:
        return f"{self.what} {self.name}".strip()


def file_input(what: str, path: str | Path, digest: str | None = None, name: str = "") -> Input:
    """Describes a file, or what was read of it when its `digest` is given; a file's own is computed otherwise.

    Raises:
        FileNotFoundError: when there is no such file.
    """
    status = os.stat(path)
    digest = digest_file(path) if digest is None else digest
    return Input(what, name, str(path), status.st_size, status.st_mtime_ns, digest)


def large_file_input(what: str, path: str | Path, recorded: Iterable[Input] = (), name: str | None = None) -> Input:
    """Describes a file of gigabytes (a slide, an array) by its size, its first and its last MiB.

    Slides and arrays keep their sizes and offsets there, so that other content shows; reading all of them would take
    hours. A file of the size and time of a recorded one is not read at all.

    Raises:
        FileNotFoundError: when there is no such file.
    """
    status = os.stat(path)
    name = Path(path).name if name is None else name
    for one in recorded:
        if one.key == (what, name) and (one.bytes, one.time) == (status.st_size, status.st_mtime_ns):
            return replace(one, path=str(path))
    hasher = hashlib.blake2b(str(status.st_size).encode(), digest_size=16)
    with open(path, "rb") as file:
        hasher.update(file.read(_END_BYTES))
        file.seek(max(0, status.st_size - _END_BYTES))
        hasher.update(file.read(_END_BYTES))
    return file_input(what, path, hasher.hexdigest(), name)


def value_input(what: str, value: object) -> Input:
    """Describes a value of the configuration that no file holds."""
    return Input(what, "", "", 0, 0, digest_text(repr(value)))


def write_inputs(path: Path, inputs: Iterable[Input]) -> None:
    """Writes `inputs.csv`, whole or not at all."""
    with write_atomically(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Input)])
        writer.writeheader()
        writer.writerows(asdict(one) for one in inputs)


def read_inputs(path: Path) -> list[Input]:
    """Reads `inputs.csv`; none where there is no such file.

    Raises:
        ValueError: when it is damaged.
    """
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        try:
            rows = list(csv.DictReader(file))
            return [
                Input(row["what"], row["name"], row["path"], int(row["bytes"]), int(row["time"]), row["digest"])
                for row in rows
            ]
        except (KeyError, TypeError, ValueError, csv.Error) as error:
            raise ValueError(
                f"Expected the list of what a run read in {path}, got {type(error).__name__}: {error}. Start the run "
                "over with overwrite=true."
            ) from error


def digest_inputs(inputs: Iterable[Input]) -> str:
    """Returns the digest of what was read, wherever and however old it is."""
    return digest_text("\n".join(sorted(f"{one.what}|{one.name}|{one.digest}" for one in inputs)))


def compare_inputs(recorded: Sequence[Input], current: Sequence[Input]) -> tuple[list[str], list[str]]:
    """Compares what a run read with what is there now.

    Returns:
        What differs or is new, and what is gone, each in words.
    """
    before, now = {one.key: one for one in recorded}, {one.key: one for one in current}
    changed = [f"{one} ({one.path}) is new" for key, one in now.items() if key not in before]
    gone = [f"{one} ({one.path})" for key, one in before.items() if key not in now]
    for key, one in before.items():
        if key in now and now[key].digest != one.digest:
            place = f" ({now[key].path})" if now[key].path else ""
            changed.append(f"{one}{place} changed")
    return changed, gone
