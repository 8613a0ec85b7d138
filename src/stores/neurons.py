"""The table of neurons: a row a neuron, to which each task joins what it finds."""

import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd

from src.files import write_atomically

_LOGGER = logging.getLogger(__name__)
NEURONS_CSV, NEURONS_PARQUET = "neurons.csv", "neurons.parquet"
_ID = "neuron_id"
_TEXTS = ("top_class", "name", "concept")


def write_neurons(folder: str | Path, table: pd.DataFrame) -> None:
    """Writes a table as `neurons.csv`, and as `neurons.parquet` where pyarrow is installed (the extra `tables`).

    Args:
        folder: where to, made when missing.
        table: a row a neuron, with a column `neuron_id`.

    Raises:
        ValueError: when `neuron_id` is missing or names a neuron twice.
    """
    _check(table, f"the table for {folder}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with write_atomically(folder / NEURONS_CSV) as temporary:
        table.to_csv(temporary, index=False)
    if find_spec("pyarrow") is None:
        _LOGGER.info("Wrote no %s: pyarrow is not installed (the extra `tables`).", NEURONS_PARQUET)
        return
    with write_atomically(folder / NEURONS_PARQUET) as temporary:
        table.to_parquet(temporary, engine="pyarrow", index=False)


def read_neurons(folder: str | Path) -> pd.DataFrame:
    """Reads the `neurons.csv` that `write_neurons` wrote, a row a neuron.

    Raises:
        FileNotFoundError: when there is none.
        ValueError: when it is no table of neurons.
    """
    path = Path(folder) / NEURONS_CSV
    if not path.is_file():
        raise FileNotFoundError(f"Expected a table of neurons at {path}, found none: run task=summarize_latents.")
    # Names of classes are texts, also those that look like numbers or missing values ("01", "NA").
    texts: Any = dict.fromkeys(_TEXTS, str)
    table = pd.read_csv(path, dtype=texts, keep_default_na=False, na_values=[""], float_precision="round_trip")
    _check(table, str(path))
    return table


def join(table: pd.DataFrame, columns: pd.DataFrame) -> pd.DataFrame:
    """Returns a table of neurons with further columns, empty for the neurons that these do not name.

    Args:
        table: a row a neuron.
        columns: `neuron_id` and what was found of some of its neurons. Columns that the table has already are replaced.

    Raises:
        ValueError: when `columns` names a neuron twice, or one that the table does not have.
    """
    _check(table, "the table")
    _check(columns, "the columns to join")
    if strange := sorted(set(columns[_ID]) - set(table[_ID])):
        raise ValueError(
            f"Expected neurons among the {len(table)} of the table, got {strange[:5]}: the columns are of another SAE."
        )
    kept = [name for name in table.columns if name == _ID or name not in columns.columns]
    return table[kept].merge(columns, on=_ID, how="left", validate="one_to_one")


def _check(table: pd.DataFrame, source: str) -> None:
    if _ID not in table:
        raise ValueError(f"Expected a column {_ID} in {source}, got {list(table.columns)}.")
    twice = table.loc[table[_ID].duplicated(), _ID].tolist()
    if twice:
        raise ValueError(f"Expected each neuron once in {source}, got neuron {twice[0]} more than once.")
