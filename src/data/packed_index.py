"""The table of a packed store: which slide owns which rows, what they digest to, and the file they came from."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from src.data.shards import REPACK
from src.files import digest_array, write_atomically

INDEX_FILE = "index.csv"
COLUMNS = (
    *("item_id", "start", "stop", "digest", "stored_digest"),
    *("coords_digest", "coords_missing", "patch_size_level0", "path", "bytes", "mtime_ns"),
)
SKIPPED_FILE = "skipped.csv"
_TEXT = ("item_id", "digest", "stored_digest", "coords_digest", "coords_missing", "path")
Identity = tuple[str, int, int]
"""Path, bytes and time of change (ns) of the file that a slide came from; see `FeatureFolder.identity`."""


def digest_coords(coords: np.ndarray) -> str:
    """Returns the digest of coords [n, 2] int32."""
    return digest_array(coords.view(np.float32))  # of their bits: as numbers, float32 would round them


def read_index(folder: Path) -> pd.DataFrame:
    """Reads the index of a store.

    Raises:
        FileNotFoundError: when there is none: the store was never finished.
        ValueError: when it is none of a packed store, or its row ranges overlap.
    """
    path = folder / INDEX_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"Expected {INDEX_FILE} in {folder}, found none: it is no packed store, or not finished."
        )
    try:
        index = pd.read_csv(path, dtype=dict.fromkeys(_TEXT, str), keep_default_na=False)
        numbers = {name: "int64" for name in COLUMNS if name not in _TEXT}
        index = pd.DataFrame({name: index[name] for name in COLUMNS}).astype(numbers)
    except (ValueError, KeyError) as error:
        raise ValueError(f"Expected the columns {', '.join(COLUMNS)} in {path}, got {error}. {REPACK}") from error
    starts, stops = index["start"].to_numpy(), index["stop"].to_numpy()
    if not len(index) or starts[0] < 0 or (starts >= stops).any() or (starts[1:] < stops[:-1]).any():
        raise ValueError(f"Expected row ranges that do not overlap in {path}, got others. {REPACK}")
    if not index["item_id"].is_unique:
        raise ValueError(f"Expected each slide once in {path}, got some twice. {REPACK}")
    return index


def write_index(folder: Path, index: pd.DataFrame) -> None:
    """Writes the index in the order of the rows; it appears whole or not at all."""
    with write_atomically(folder / INDEX_FILE) as temporary:
        index.sort_values(by="start").to_csv(temporary, columns=list(COLUMNS), index=False)


def slide_identities(table: pd.DataFrame) -> dict[str, Identity]:
    """Returns the identities of the files that the slides of an index, or the skipped ones, came from."""
    columns = (table[name] for name in ("item_id", "path", "bytes", "mtime_ns"))
    return {str(item_id): (str(path), int(size), int(time)) for item_id, path, size, time in zip(*columns, strict=True)}


def replace_slides(table: pd.DataFrame | None, new: pd.DataFrame) -> pd.DataFrame:
    """Returns the rows of `new` and those of `table` on other slides."""
    is_kept = [] if table is None else (~table["item_id"].isin(new["item_id"].tolist())).tolist()
    return pd.concat([table.loc[is_kept], new]) if table is not None and any(is_kept) else new


def read_skipped(folder: Path) -> pd.DataFrame:
    """Reads which files only reading them to the end showed to be bad: item_id, path, bytes, mtime_ns, reason."""
    if not (folder / SKIPPED_FILE).is_file():
        return pd.DataFrame(columns=["item_id", "path", "bytes", "mtime_ns", "reason"])
    return pd.read_csv(folder / SKIPPED_FILE, dtype={"item_id": str, "path": str, "reason": str}, keep_default_na=False)


def add_skipped(folder: Path, reasons: Mapping[str, str], identities: Mapping[str, Identity]) -> None:
    """Adds slides, and why they were skipped, to those of `read_skipped`."""
    if not reasons:
        return
    rows = [(item_id, *identities[item_id], reason) for item_id, reason in reasons.items()]
    before = read_skipped(folder)
    table = replace_slides(before, pd.DataFrame(rows, columns=list(before.columns)))
    with write_atomically(folder / SKIPPED_FILE) as temporary:
        table.to_csv(temporary, index=False)
