"""Slides, cases and labels: read and checked once, used by everything else."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from src.csv_tables import read_table, refuse_blanks, repeated, some

_LOGGER = logging.getLogger(__name__)

PARTS = ("train", "val", "test")
ALL = "all"
"""The fold of a cohort that only receives what was fitted elsewhere: one part, `test`, holds every item."""
ID_COLUMNS = ("slide_id", "image_id", "item_id")
"""The column names under which a csv may list its items."""
UNCERTAIN = "-1"
"""How label columns spell that a finding is uncertain (CheXpert)."""


@dataclass(frozen=True)
class Item:
    """A slide or an image, with the patient it comes from and its labels.

    Attributes:
        item_id: its id.
        case_id: the patient; the item itself where the csv has no cases.
        label: that of the target, None where it has none.
        labels: those of further columns, by column.
    """

    item_id: str
    case_id: str
    label: str | None
    labels: Mapping[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class FittedItem:
    """A slide that something was fitted on, with the digest and number of its activations."""

    item_id: str
    case_id: str
    digest: str
    n_patches: int


def read_items(
    metadata_csv: str | Path,
    class_names: Sequence[str] | None = None,
    target: str | None = "label",
    labels: Sequence[str] = (),
    uncertain: str | None = None,
    needs_target: bool = True,
    where: Mapping[str, str] | None = None,
) -> list[Item]:
    """Reads the csv of a data set: an id column, `case_id`, and any number of label columns. All are texts.

    The id column is `slide_id`, `image_id` or `item_id`. An item without a case_id is an error, not a case of its own:
    its patient may have other items in the file. Where there is no column case_id, each item is a case of its own,
    which is logged. An empty label means unlabelled.

    Args:
        metadata_csv: the csv; further columns are ignored.
        class_names: the labels of the target that may occur, as `class_name` takes them; any when None.
        target: the label column to predict; None for a data set without labels.
        labels: further label columns to read.
        uncertain: what the label -1 means: `unlabelled` or a class; None leaves it as it is.
        needs_target: whether a csv without the target's column is wrong, or of unlabelled items.
        where: values of columns; other lines are left out. None: all are taken.

    Returns:
        The items in the order of the file.

    Raises:
        FileNotFoundError: when the csv does not exist.
        ValueError: when the file is no csv in UTF-8, a column is missing, an id is empty, an id or label has blanks
            around it, an id occurs twice, or a label is not a known class.
    """
    path = Path(metadata_csv)
    columns = [*([] if target is None else [target]), *labels]
    if not path.is_file():
        raise FileNotFoundError(
            f"Expected a csv with columns {', '.join(['case_id', 'slide_id (or image_id, item_id)', *columns])} at "
            f"{path}, found no such file. Give dataset.metadata_csv=<csv>."
        )
    table = _matching(read_table(path), where or {}, path)
    return to_items(table, path, class_names, target, labels, uncertain, needs_target)


def to_items(
    table: Mapping[str, Sequence[str]],
    path: str | Path,
    class_names: Sequence[str] | None = None,
    target: str | None = "label",
    labels: Sequence[str] = (),
    uncertain: str | None = None,
    needs_target: bool = True,
) -> list[Item]:
    """Makes items of the columns of a csv; see `read_items`.

    Args:
        table: the columns.
        path: the csv, or where the columns come from, for messages.
        class_names: see `read_items`, as the others.
        target: see there.
        labels: see there.
        uncertain: see there.
        needs_target: see there.

    Raises:
        ValueError: when the columns are wrong.
    """
    columns = [*([] if target is None else [target]), *labels]
    if not needs_target and target not in table:
        target, columns = None, list(labels)
    if missing := [column for column in columns if column not in table]:
        raise ValueError(
            f"Expected the label columns {columns} in {path}, got {list(table)}: add {missing}, give "
            "dataset.target=<column>, or dataset.target=null for a data set without labels."
        )
    ids_in = id_column(table, path)
    item_ids = table[ids_in]
    case_ids = table.get("case_id")
    if case_ids is None:
        _LOGGER.warning("%s has no column case_id: every item counts as a case of its own.", path)
        case_ids = item_ids
    for column, values in {ids_in: item_ids, "case_id": case_ids, **{name: table[name] for name in columns}}.items():
        refuse_blanks(values, column, path, may_be_empty=column in columns)
    if twice := repeated(item_ids):
        raise ValueError(f"Expected every id once in {path}, got {some(twice)} more than once: remove the others.")
    meanings = {"": None} | ({} if uncertain is None else {UNCERTAIN: None if uncertain == "unlabelled" else uncertain})
    meant = {column: [meanings.get(value, value) for value in table[column]] for column in columns}
    names = [None] * len(item_ids) if target is None else meant[target]
    if class_names is not None:
        known = [class_name(name, "dataset.class_names") for name in class_names]
        if unknown := sorted({name for name in names if name is not None} - set(known)):
            raise ValueError(
                f"Expected labels among {known} in {path}, got {unknown}: correct the csv or dataset.class_names."
            )
    others = ({column: meant[column][i] for column in labels} for i in range(len(item_ids)))
    return [Item(*values) for values in zip(item_ids, case_ids, names, others, strict=True)]


def id_column(table: Mapping[str, Sequence[str]], path: str | Path) -> str:
    """Returns the one of `ID_COLUMNS` that a table has.

    Raises:
        ValueError: when it has none or several.
    """
    found = [column for column in ID_COLUMNS if column in table]
    if len(found) != 1:
        raise ValueError(
            f"Expected one of the columns {', '.join(ID_COLUMNS)} in {path}, got {found or list(table)}: name "
            "the column of the ids so, and no other."
        )
    return found[0]


def class_name(value: Any, key: str) -> str:
    """Returns a class name as the csv spells it, where YAML or the command line made a whole number of it.

    Args:
        value: a text, or the whole number of labels such as 0 and 1.
        key: where it was given, for messages.

    Raises:
        ValueError: when it is neither: `true` or 1.0 may be spelled in several ways.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise ValueError(f"Expected a text in {key}, got {value!r}: put the label in quotes, as the csv spells it.")


def order_classes(
    labels: Iterable[str], positive_class: str | None, class_names: Sequence[str] | None = None
) -> tuple[str, ...]:
    """Returns the class names in a fixed order: that of the configuration or sorted, with the positive of two last.

    The index of a name in the result is its label everywhere, so that in two-class data 1 means positive whatever
    the classes are called.

    Args:
        labels: those that occur; others are no classes.
        positive_class: of two classes.
        class_names: the order that the configuration gives; None: sorted.

    Raises:
        ValueError: when there is one class only, the positive class is not a class, or two-class data names none.
    """
    names = sorted(set(labels))
    if class_names is not None:
        names.sort(key=[class_name(name, "dataset.class_names") for name in class_names].index)
    if len(names) < 2:
        raise ValueError(f"Expected at least two classes among the labels, got {names}.")
    if positive_class is not None:
        positive_class = class_name(positive_class, "dataset.positive_class")
        if positive_class not in names:
            raise ValueError(
                f"Expected dataset.positive_class to be one of {names}, got {positive_class!r}: spell it as the csv "
                "does, a number with leading zeros in quotes."
            )
    if len(names) == 2:
        if positive_class is None:
            raise ValueError(
                f"Expected two-class data to name its positive class, got none of {names}: "
                "give dataset.positive_class=<name>."
            )
        names.sort(key=lambda name: name == positive_class)
    return tuple(names)


def _matching(table: Mapping[str, list[str]], where: Mapping[str, str], path: Path) -> Mapping[str, list[str]]:
    """Returns the lines of a table with given values in given columns."""
    if missing := sorted(where.keys() - table.keys()):
        raise ValueError(f"Expected the columns of dataset.where in {path}, got {list(table)}, without {missing}.")
    if not where:
        return table
    kept = [
        all(table[column][i] == value for column, value in where.items())
        for i in range(len(next(iter(table.values()))))
    ]
    if not any(kept):
        raise ValueError(f"Expected lines of {path} with the values of dataset.where, {dict(where)}, got none.")
    return {
        column: [value for value, is_kept in zip(values, kept, strict=True) if is_kept]
        for column, values in table.items()
    }
