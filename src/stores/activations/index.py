"""The tables of a packed store: which item owns which rows of a shard, their digests, and the file they came from."""

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from src.activation_spec import ActivationSpec, require_same_spec
from src.files import digest_array, read_json_object, write_atomically

COLUMNS = (
    *("item_id", "start", "stop", "digest", "coords_digest", "coords_missing", "patch_size_level0", "spec"),
    *("path", "bytes", "mtime_ns"),
)
_NUMBERS = ("start", "stop", "patch_size_level0", "bytes", "mtime_ns")
_TEXTS = tuple(column for column in COLUMNS if column not in _NUMBERS)
_SPECS_FILE, _SKIPPED_FILE = "specs.json", "skipped.json"
REPACK = "Delete the folder; the next run packs it again."
_ONE_MODEL = "Keep activations of different models, layers or preprocessing in different folders, or leave these out."

Identity = tuple[str, int, int]
"""Path, bytes and time of change (ns) of an item's file: another one where the values may be others."""


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


def read_index(folder: Path) -> pd.DataFrame:
    """Reads the tables of all shards: COLUMNS, with `start` and `stop` counted within the column `shard`.

    Of an item that was packed again, the newest rows; no rows where nothing was packed to the end.

    Raises:
        ValueError: when a table is none of a packed store, or its row ranges overlap.
    """
    tables = [_read_table(index_path(folder, number)).assign(shard=number) for number in shard_numbers(folder)]
    if not tables:
        return pd.DataFrame(columns=[*COLUMNS, "shard"])
    return pd.concat(tables).drop_duplicates("item_id", keep="last", ignore_index=True)


def _read_table(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, dtype=dict.fromkeys(_TEXTS, str), keep_default_na=False)
        table = pd.DataFrame({name: table[name] for name in COLUMNS}).astype(dict.fromkeys(_NUMBERS, "int64"))
    except (ValueError, KeyError) as error:
        raise ValueError(f"Expected the columns {', '.join(COLUMNS)} in {path}, got {error}. {REPACK}") from error
    starts, stops = np.asarray(table["start"]), np.asarray(table["stop"])
    if not len(table) or starts[0] < 0 or (starts >= stops).any() or (starts[1:] < stops[:-1]).any():
        raise ValueError(f"Expected row ranges that do not overlap in {path}, got others. {REPACK}")
    return table


def write_index(folder: Path, number: int, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes the table of a shard, one row an item; with it the shard is there.

    Args:
        folder: of the store.
        number: of the shard.
        rows: values by column, the spec as such.
    """
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    digests = {spec: spec.digest for spec in {row["spec"] for row in rows}}
    known = read_specs(folder)
    if not known.keys() >= set(digests.values()):
        content = known | {digest: spec for spec, digest in digests.items()}
        with write_atomically(folder / _SPECS_FILE) as temporary:
            temporary.write_text(json.dumps({digest: spec.to_dict() for digest, spec in content.items()}, indent=1))
    with write_atomically(index_path(folder, number)) as temporary:
        table.assign(spec=[digests[row["spec"]] for row in rows]).to_csv(temporary, index=False)


def item_identities(index: pd.DataFrame) -> dict[str, Identity]:
    """Returns the identities of the files that the items of an index came from."""
    paths, sizes, times = (index[name].tolist() for name in ("path", "bytes", "mtime_ns"))
    return dict(zip(index["item_id"], zip(paths, sizes, times, strict=True), strict=True))


def read_specs(folder: Path) -> dict[str, ActivationSpec]:
    """Returns the specs that the indices of a store name, by digest."""
    path = folder / _SPECS_FILE
    content = read_json_object(path, REPACK) if path.is_file() else {}
    return {digest: ActivationSpec.from_dict(values) for digest, values in content.items()}


def index_specs(folder: Path, index: pd.DataFrame) -> dict[ActivationSpec, str]:
    """Returns the specs of the items of an index, each with the file of the first item of it.

    Raises:
        ValueError: when the store lacks one.
    """
    specs, first = read_specs(folder), index.drop_duplicates("spec")
    if missing := set(first["spec"]) - specs.keys():
        raise ValueError(f"Expected the specs {sorted(missing)} in {folder / _SPECS_FILE}, got none. {REPACK}")
    return {specs[digest]: path for digest, path in zip(first["spec"], first["path"], strict=True)}


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
