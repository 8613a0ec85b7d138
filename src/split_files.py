"""The split of a fold: its items by part, read from the files that task=splits or somebody else made, and checked."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from src.csv_tables import read_table, refuse_blanks, repeated, some
from src.records import PARTS, Item

MADE_BY_LOUPE = "made_by_loupe.json"
"""Lies beside folds that task=splits made; folds without it are somebody's own and are never touched."""
_SPLIT_FILE = re.compile(r"splits_(?P<listed>\d+)(_bool)?\.csv|rep(?P<repeat>\d+)_fold(?P<fold>\d+)\.csv")


@dataclass(frozen=True)
class FoldSplit:
    """The items of one cross-validation fold, by part."""

    fold: int | str
    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]

    def item_ids(self, parts: str) -> tuple[str, ...]:
        """Returns the slides of a part or a union of parts.

        Args:
            parts: `train`, `val`, `test`, or several joined by `+`, e.g. `train+val`.

        Raises:
            ValueError: when a part is not one of the three.
        """
        names = parts.split("+")
        if unknown := [name for name in names if name not in PARTS]:
            raise ValueError(f"Expected a split made of {'+'.join(PARTS)}, got {unknown[0]!r} in {parts!r}.")
        return tuple(item_id for name in names for item_id in getattr(self, name))


def read_split(splits_dir: str | Path, fold: int, repeat: int = 0) -> FoldSplit:
    """Reads one fold of the files that `find_split` finds.

    Understood are columns train, val, test (ragged, with or without an index column) and, in `splits_<k>_bool.csv`,
    slide ids as index and one boolean column a part. Without a column val the fold has no validation items; see
    `lists_validation`.

    Raises:
        FileNotFoundError: when there is no file, naming those looked for and the command that makes them.
        ValueError: when the file is no csv in UTF-8, the columns are not those, an id has blanks around it, or a slide
            is in two parts.
    """
    path = find_split(splits_dir, fold, repeat)
    table = read_table(path)
    if missing := {"train", "test"} - set(table):
        raise ValueError(f"Expected columns train, val, test in {path}, got {list(table)}: missing {sorted(missing)}.")
    members = _flagged_slides if path.name.endswith("_bool.csv") else _listed_slides
    parts = {part: members(table, part, path) if part in table else () for part in PARTS}
    split = FoldSplit(fold, **parts)
    everything = split.item_ids("train+val+test")
    refuse_blanks(everything, "slide ids", path)
    if both := repeated(everything):
        raise ValueError(
            f"Expected each slide in one part of fold {fold} in {splits_dir}, got {some(both)} in several."
        )
    return split


def find_split(splits_dir: str | Path, fold: int, repeat: int = 0) -> Path:
    """Returns the file of a fold's split: `splits_<k>.csv`, `splits_<k>_bool.csv` or `rep<r>_fold<k>.csv`.

    The first that is there is taken. A folder that task=splits made holds the folds of one repeat, whichever it is; in
    others a repeat above 0 has files of the third name only.

    Raises:
        FileNotFoundError: when there is none.
    """
    folder = Path(splits_dir)
    names = [f"splits_{fold}.csv", f"splits_{fold}_bool.csv", f"rep{repeat}_fold{fold}.csv"]
    if repeat and not (folder / MADE_BY_LOUPE).is_file():
        names = names[2:]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(
        f"Expected the split of fold {fold} (repeat {repeat}) at {' or '.join(names)} in {folder}, found none. Give "
        "dataset.splits_dir=<folder>, or make splits with task=splits."
    )


def given_splits(splits_dir: str | Path) -> dict[int, set[int]]:
    """Returns the folds of every repeat that a folder has files of; those of `splits_<k>.csv` are of repeat 0."""
    found: dict[int, set[int]] = {}
    for path in Path(splits_dir).glob("*.csv"):
        if match := _SPLIT_FILE.fullmatch(path.name):
            found.setdefault(int(match["repeat"] or 0), set()).add(int(match["fold"] or match["listed"]))
    return found


def lists_validation(path: Path) -> bool:
    """Whether the file of a fold has a column of validation items."""
    return "val" in read_table(path)


def check_split(
    split: FoldSplit, slides: Sequence[Item], source: str = "the dataset csv", needed: Sequence[str] = ("train", "test")
) -> None:
    """Checks that a split names known slides only and keeps every case on one side.

    Args:
        split: the fold.
        slides: the slides of the dataset.
        source: where they are listed, for messages.
        needed: parts that must not be empty.

    Raises:
        ValueError: when a slide of the split is not among `slides`, a needed part is empty, or a
            case has slides in two parts.
    """
    case_of = {slide.item_id: slide.case_id for slide in slides}
    if unknown := [item_id for item_id in split.item_ids("train+val+test") if item_id not in case_of]:
        raise ValueError(
            f"Expected every slide of fold {split.fold} in {source}, got {some(unknown)} that it does not list: "
            "add the rows or correct the split."
        )
    for part in needed:
        if not getattr(split, part):
            raise ValueError(f"Expected slides in part {part!r} of fold {split.fold}, got none.")
    part_of: dict[str, str] = {}
    for part in PARTS:
        for item_id in getattr(split, part):
            other = part_of.setdefault(case_of[item_id], part)
            if other != part:
                raise ValueError(
                    f"Expected the slides of a case in one part of fold {split.fold}, got case "
                    f"{case_of[item_id]!r} in {other} and {part}: split by case (task=splits does)."
                )


def _listed_slides(table: Mapping[str, list[str]], part: str, _: Path) -> tuple[str, ...]:
    return tuple(value for value in table[part] if value)


def _flagged_slides(table: Mapping[str, list[str]], part: str, path: Path) -> tuple[str, ...]:
    flags = [flag.lower() for flag in table[part]]
    if unknown := sorted(set(flags) - {"true", "false"}):
        raise ValueError(f"Expected True or False in column {part} of {path}, got {some(unknown)}.")
    item_ids = next(iter(table.values()))
    return tuple(item_id for item_id, flag in zip(item_ids, flags, strict=True) if flag == "true")
