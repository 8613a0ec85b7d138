"""Writes the csv of a data set, and its split and boxes where it has them, from what its source is found to hold."""

import csv
import io
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from src.data.current_inputs import CurrentInputs
from src.data.images.boxes import BOXES_FILE
from src.data.listing import Listing, list_dataset
from src.data.splits import write_folds
from src.files import digest_file, digest_text, read_json_object, remove_leftovers, write_atomically
from src.records import PARTS, Item, to_items
from src.runs.rundir import RunDir
from src.split_files import MADE_BY_LOUPE, FoldSplit, check_split, read_split

_LOGGER = logging.getLogger(__name__)
_SOURCE = "dataset.listing"
_SPLIT = "splits_0.csv"


def run(cfg: Any, rundir: RunDir) -> dict[str, float]:
    """Writes `dataset.metadata_csv`, `boxes.csv` beside it, and `splits_0.csv` into `dataset.splits_dir`.

    Boxes and split where the source has them; the csv last. Without a part of validation images nothing is validated
    on; without one of test images what is measured on test items must be asked for on another split.

    Returns:
        The number of items, and those of each part.

    Raises:
        ValueError: when the data set has no listing, its items are wrong (see `src.records.read_items`), a case is in
            two parts, or there are a csv, boxes or a split that somebody else made or changed.
    """
    if cfg.dataset.get("listing") is None:
        raise ValueError(
            "Expected dataset.listing to say how the items of the data set are found, got none. Give dataset.listing, "
            "or write dataset.metadata_csv by hand."
        )
    listing = list_dataset(cfg.dataset)
    items = _items(listing, cfg.dataset)
    split = None
    if listing.parts is not None:
        split = FoldSplit(0, **{part: tuple(listing.parts.get(part, ())) for part in PARTS})
        check_split(split, items, _SOURCE, needed=())
    rundir.record(*CurrentInputs(cfg).read("listing"))
    _write(cfg, listing, split, items)
    parts = {} if listing.parts is None else listing.parts
    return {"n_items": float(len(items))} | {f"n_{part}": float(len(ids)) for part, ids in parts.items()}


def missing_inputs(cfg: Any) -> list[str]:
    """Returns why a pipeline need not write a csv, or must not."""
    if cfg.dataset.get("listing") is None:
        return ["the data set has no listing"]
    path = Path(cfg.dataset.metadata_csv)
    if path.is_file() and digest_file(path) not in _read_notes(path).get(path.name, []):
        return [f"the data set has a csv at {path} that task=metadata did not write, or that was changed since"]
    return []


def _items(listing: Listing, dataset: Any) -> list[Item]:
    columns = dataset.get("target", "label"), dataset.get("labels", ()), dataset.get("uncertain")
    items = to_items(listing.columns, _SOURCE, dataset.class_names, *columns)
    if all(item.case_id == item.item_id for item in items):
        _LOGGER.warning(
            "Nothing says which items are of one patient: each counts as a case of its own. Where patients have "
            "several, name them (dataset.tensor_cases, dataset.listing.case_pattern or .columns.case), or splits "
            "may leak."
        )
    return items


def _write(cfg: Any, listing: Listing, split: FoldSplit | None, items: Sequence[Item]) -> None:
    """Writes the files, the csv last; before them a note of what is written, so that nobody else's is overwritten."""
    path, splits_dir = Path(cfg.dataset.metadata_csv), Path(cfg.dataset.splits_dir)
    tables = {} if listing.boxes is None else {path.with_name(BOXES_FILE): _as_csv(listing.boxes)}
    tables[path] = _as_csv(listing.columns)
    digests = {one.name: digest_text(text) for one, text in tables.items()}
    found = {one.name: digest_file(one) for one in tables if one.is_file()}
    if split is not None:
        digests[_SPLIT] = _digest_split(split)
        found |= _digest_of_split(splits_dir)
    notes = _read_notes(path)
    foreign = [name for name, digest in found.items() if digest not in (digests[name], *notes.get(name, []))]
    if foreign and not cfg.overwrite:
        raise ValueError(
            f"Expected no {' or '.join(foreign)} in {path.parent} or {splits_dir} other than task=metadata wrote, got "
            "another: it was made or changed by hand. Give another dataset.metadata_csv and dataset.splits_dir, or "
            "overwrite=true to replace it."
        )
    remove_leftovers(path.parent)
    # With the digests of before: a killed run leaves either.
    notes = {name: list(dict.fromkeys([*notes.get(name, [])[-1:], digest])) for name, digest in digests.items()}
    with write_atomically(_notes_path(path)) as temporary:
        temporary.write_text(json.dumps(notes, indent=2) + "\n")
    if split is not None:
        splits_dir.mkdir(parents=True, exist_ok=True)
        remove_leftovers(splits_dir)
        write_folds([split], items, splits_dir)
    for file, text in tables.items():
        with write_atomically(file) as temporary, open(temporary, "w", encoding="utf-8", newline="") as opened:
            opened.write(text)


def _as_csv(columns: Mapping[str, Sequence[object]]) -> str:
    """Returns a csv as pandas writes it, lines ended by a newline alone."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return text.getvalue()


def _digest_split(split: FoldSplit) -> str:
    return digest_text(repr([split.item_ids(part) for part in PARTS]))


def _digest_of_split(splits_dir: Path) -> dict[str, str]:
    if (splits_dir / MADE_BY_LOUPE).is_file():
        raise ValueError(
            f"Expected no folds of task=splits in {splits_dir}, because dataset.listing brings a split of its own. "
            "Remove the folder, or give another dataset.splits_dir."
        )
    return {_SPLIT: _digest_split(read_split(splits_dir, 0))} if (splits_dir / _SPLIT).is_file() else {}


def _notes_path(metadata_csv: Path) -> Path:
    return metadata_csv.with_name(f"{metadata_csv.stem}.{MADE_BY_LOUPE}")


def _read_notes(metadata_csv: Path) -> dict[str, list[str]]:
    """Returns the digests of what this task wrote for a csv, by file."""
    path = _notes_path(metadata_csv)
    return read_json_object(path, "Remove it.") if path.is_file() else {}
