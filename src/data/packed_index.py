"""The table of a packed store: which slide owns which rows, what they digest to, and the file they came from."""

from pathlib import Path

import pandas as pd

from src.data.shards import REPACK
from src.files import write_atomically

INDEX_FILE = "index.csv"
COLUMNS = ("slide_id", "start", "stop", "digest", "stored_digest", "path", "bytes", "mtime_ns")
_TEXT = ("slide_id", "digest", "stored_digest", "path")


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
    if not index["slide_id"].is_unique:
        raise ValueError(f"Expected each slide once in {path}, got some twice. {REPACK}")
    return index


def write_index(folder: Path, index: pd.DataFrame) -> None:
    """Writes the index in the order of the rows; it appears whole or not at all."""
    with write_atomically(folder / INDEX_FILE) as temporary:
        index.sort_values(by="start").to_csv(temporary, columns=list(COLUMNS), index=False)
