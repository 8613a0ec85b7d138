"""What an unfinished packing intends and has done, so that the next start goes on where it ended."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from src.data.readers.feature_source import FeatureSource
from src.files import write_atomically

PLAN_FILE = "plan.json"
JOURNAL_FILE = "journal.jsonl"


@dataclass(frozen=True)
class Place:
    """Where the rows of a slide go, and the file they come from."""

    start: int
    stop: int
    path: str
    bytes: int
    mtime_ns: int

    @property
    def identity(self) -> tuple[str, int, int]:
        """See `FeatureFolder.identity`."""
        return self.path, self.bytes, self.mtime_ns


@dataclass
class Plan:
    """New shards of a store and who gets which of their rows.

    Attributes:
        first_shard: the number of the first new shard.
        first_row: the number of its first row.
        sizes: rows of each new shard.
        places: by slide.
    """

    first_shard: int
    first_row: int
    sizes: list[int] = field(default_factory=list)
    places: dict[str, Place] = field(default_factory=dict)

    def add(
        self, sources: Mapping[str, FeatureSource], identities: Mapping[str, tuple[str, int, int]], shard_rows: int
    ) -> None:
        """Gives slides, in the order of their ids, places in further shards of at most `shard_rows` rows."""
        start = first = self.first_row + sum(self.sizes)
        for item_id in sorted(sources):
            stop = start + sources[item_id].n_patches
            self.places[item_id] = Place(start, stop, *identities[item_id])
            start = stop
        n_rows = start - first
        self.sizes += [min(shard_rows, n_rows - done) for done in range(0, n_rows, shard_rows)]

    def write(self, folder: Path) -> None:
        """Writes the plan; it appears whole or not at all."""
        with write_atomically(folder / PLAN_FILE) as temporary:
            temporary.write_text(json.dumps(vars(self), default=vars))


def read_plan(folder: Path) -> Plan | None:
    """Reads the plan of an unfinished packing, None when there is none."""
    try:
        content = json.loads((folder / PLAN_FILE).read_text())
    except FileNotFoundError:
        return None
    content["places"] = {item_id: Place(**place) for item_id, place in content["places"].items()}
    return Plan(**content)


@dataclass(frozen=True)
class Packed:
    """A slide whose rows, from `start` on, are written; the rest as in `ActivationStore.index`."""

    item_id: str
    start: int
    digest: str
    stored_digest: str
    coords_digest: str
    coords_missing: str
    patch_size_level0: int


class Journal:
    """The packed slides of an unfinished packing, a line each, written after their rows."""

    def __init__(self, folder: Path) -> None:
        self._file = open(folder / JOURNAL_FILE, "ab", buffering=0)  # noqa: SIM115 closed by `close`

    def add(self, slides: Iterable[Packed]) -> None:
        """Adds slides. The line break comes first: a line that a kill cut short spoils no other."""
        self._file.write("".join("\n" + json.dumps(vars(packed)) for packed in slides).encode())

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def read_journal(folder: Path) -> list[Packed]:
    """Reads the packed slides; a line that was cut short is left out, its slide counts as not packed."""
    try:
        lines = (folder / JOURNAL_FILE).read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    slides = []
    for line in lines:
        try:
            slides.append(Packed(**json.loads(line)))
        except ValueError:
            continue
    return slides


def remove_plan(folder: Path) -> None:
    """Removes plan and journal: the index lists what they did."""
    for name in (PLAN_FILE, JOURNAL_FILE):
        (folder / name).unlink(missing_ok=True)
