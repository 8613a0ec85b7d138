"""The tables of a packed store: which item owns which rows of a shard, their digests, and the file they came from."""

import csv
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from src.activation_spec import ActivationSpec, require_same_spec
from src.csv_tables import read_table
from src.files import digest_array, read_json_object, write_atomically

_SPECS_FILE, _SKIPPED_FILE = "specs.json", "skipped.json"
REPACK = "Delete the folder; the next run packs it again."
_ONE_MODEL = "Keep activations of different models, layers or preprocessing in different folders, or leave these out."

Identity = tuple[str, int, int]
"""Path, bytes and time of change (ns) of an item's file: another one where the values may be others."""


class IndexRow(NamedTuple):
    """What a store's tables say of an item: the columns of the csv.

    Attributes:
        item_id: of the item.
        shard: the number of the shard.
        start: its first row within the shard.
        stop: one past its last row.
        digest: of its float32 values.
        coords_digest: '' without coords.
        coords_missing: why there are none.
        patch_size_level0: edge of a patch in level-0 pixels; 0 where the file does not state it.
        spec: the digest of the spec.
        path: the file it came from, with the size and the time of change that it had.
        bytes: of that file.
        mtime_ns: of that file.
    """

    item_id: str
    shard: int
    start: int
    stop: int
    digest: str
    coords_digest: str
    coords_missing: str
    patch_size_level0: int
    spec: str
    path: str
    bytes: int
    mtime_ns: int

    @property
    def identity(self) -> Identity:
        """Of the file that the item came from."""
        return self.path, self.bytes, self.mtime_ns


def shard_path(folder: Path, number: int) -> Path:
    """Returns the file of a shard's rows."""
    return folder / f"shard_{number:05d}.npy"


def coords_path(folder: Path, number: int) -> Path:
    """Returns the file with the coords of a shard's rows; there is none where no item of the shard has any."""
    return folder / f"coords_{number:05d}.npy"


def index_path(folder: Path, number: int) -> Path:
    """Returns the table of a shard, written last: a shard without it is not there."""
    return folder / f"index_{number:05d}.csv"


def shard_numbers(folder: Path) -> list[int]:
    """Returns the numbers of the shards of a store, ascending; none where there is no store."""
    return sorted(int(path.stem.removeprefix("index_")) for path in folder.glob("index_*.csv"))


def remove_unlisted(folder: Path, numbers: Collection[int]) -> None:
    """Removes the files of shards that have no table: their writer was killed before the last step."""
    for kind in ("shard", "coords"):
        for path in folder.glob(f"{kind}_*.npy"):
            if int(path.stem.removeprefix(f"{kind}_")) not in numbers:
                path.unlink()


def read_index(folder: Path) -> dict[str, IndexRow]:
    """Reads the tables of all shards, by item.

    Of an item that was packed again, the newest rows; no rows where nothing was packed to the end.

    Raises:
        ValueError: when a table is none of a packed store, or its row ranges overlap.
    """
    index: dict[str, IndexRow] = {}
    for number in shard_numbers(folder):
        for row in _read_rows(index_path(folder, number)):
            index.pop(row.item_id, None)  # in the order of the shards
            index[row.item_id] = row
    return index


def _read_rows(path: Path) -> list[IndexRow]:
    try:
        table = read_table(path)
        typed = (map(kind, table[name]) for name, kind in IndexRow.__annotations__.items())
        rows = [IndexRow(*values) for values in zip(*typed, strict=True)]
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"Expected the columns {', '.join(IndexRow._fields)} in {path}, got {error}. {REPACK}"
        ) from error
    stops = [0, *(row.stop for row in rows)]
    if not rows or any(row.start < before or row.start >= row.stop for before, row in zip(stops, rows, strict=False)):
        raise ValueError(f"Expected row ranges that do not overlap in {path}, got others. {REPACK}")
    return rows


def write_index(folder: Path, number: int, rows: Sequence[IndexRow], specs: Iterable[ActivationSpec]) -> None:
    """Writes the table of a shard; with it the shard is there.

    Args:
        folder: of the store.
        number: of the shard.
        rows: one an item.
        specs: those whose digests the rows name.
    """
    known = read_specs(folder)
    content = known | {spec.digest: spec for spec in specs}
    if content.keys() != known.keys():
        with write_atomically(folder / _SPECS_FILE) as temporary:
            temporary.write_text(json.dumps({digest: spec.to_dict() for digest, spec in content.items()}, indent=1))
    with write_atomically(index_path(folder, number)) as temporary, temporary.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([IndexRow._fields, *rows])


def read_specs(folder: Path) -> dict[str, ActivationSpec]:
    """Returns the specs that the indices of a store name, by digest."""
    path = folder / _SPECS_FILE
    content = read_json_object(path, REPACK) if path.is_file() else {}
    return {digest: ActivationSpec.from_dict(values) for digest, values in content.items()}


def index_specs(folder: Path, rows: Iterable[IndexRow]) -> dict[ActivationSpec, str]:
    """Returns the specs of items, each with the file of the first item of it.

    Raises:
        ValueError: when the store lacks one.
    """
    specs, first = read_specs(folder), {}
    for row in rows:
        first.setdefault(row.spec, row.path)
    if missing := first.keys() - specs.keys():
        raise ValueError(f"Expected the specs {sorted(missing)} in {folder / _SPECS_FILE}, got none. {REPACK}")
    return {specs[digest]: path for digest, path in first.items()}


def add_spec(stated: dict[ActivationSpec, str], spec: ActivationSpec, source: str) -> None:
    """Adds a spec, and the file that states it, to those of other items.

    Raises:
        ValueError: when it differs from one of them.
    """
    if spec not in stated:
        for other, other_source in stated.items():
            require_same_spec(other, other_source, spec, source, _ONE_MODEL)
        stated[spec] = source


def digest_coords(coords: np.ndarray) -> str:
    """Returns the digest of coords [n, 2] int32."""
    return digest_array(coords.view(np.float32))  # of their bits: as numbers, float32 would round them


def read_skipped(folder: Path) -> dict[str, tuple[Identity, str]]:
    """Returns which items reading showed to be bad: the identity of the file, and why."""
    path = folder / _SKIPPED_FILE
    content = read_json_object(path, REPACK) if path.is_file() else {}
    return {item_id: ((path, size, time), reason) for item_id, ((path, size, time), reason) in content.items()}


def add_skipped(folder: Path, skipped: Mapping[str, tuple[Identity, str]]) -> None:
    """Adds items to those of `read_skipped`."""
    if skipped:
        with write_atomically(folder / _SKIPPED_FILE) as temporary:
            temporary.write_text(json.dumps({**read_skipped(folder), **skipped}, indent=1))
