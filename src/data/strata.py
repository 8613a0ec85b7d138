"""The confounder of items, such as the centre or the scanner, from columns of the data set's csv."""

from collections.abc import Sequence
from pathlib import Path

from src.csv_tables import read_table, some
from src.files import digest_text
from src.inputs import Input, file_input
from src.records import id_column


def read_strata(metadata_csv: str | Path, columns: Sequence[str], item_ids: Sequence[str]) -> tuple[str, ...]:
    """Returns the values of columns for each item, joined by ", " where there are several.

    Args:
        metadata_csv: the data set's csv.
        columns: `selection.adjust_for`.
        item_ids: the items.

    Raises:
        ValueError: when a column is missing, or an item has no value in one.
    """
    table = read_table(metadata_csv)
    if missing := [column for column in columns if column not in table]:
        raise ValueError(
            f"Expected the columns {list(columns)} of selection.adjust_for in {metadata_csv}, got {list(table)}: add "
            f"{missing}, or name other columns."
        )
    rows = zip(*(table[column] for column in columns), strict=True)
    by_id = dict(zip(table[id_column(table, metadata_csv)], rows, strict=True))
    if empty := [item_id for item_id in item_ids if not all(value.strip() for value in by_id[item_id])]:
        raise ValueError(
            f"Expected every item to have a value in {list(columns)} of {metadata_csv}, got none for {some(empty)}: "
            "fill them in, or leave those items out of the split."
        )
    return tuple(", ".join(by_id[item_id]) for item_id in item_ids)


def strata_input(what: str, metadata_csv: str | Path, columns: Sequence[str], item_ids: Sequence[str]) -> Input:
    """Describes what `read_strata` reads."""
    values = list(zip(item_ids, read_strata(metadata_csv, columns, item_ids), strict=True))
    return file_input(what, metadata_csv, digest_text(repr((list(columns), values))))
