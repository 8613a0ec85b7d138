"""Makes the cross-validation folds of a dataset, once."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from src.data.current_inputs import CurrentInputs
from src.data.fold_table import list_items
from src.data.splits import count_classes, make_folds, write_folds
from src.files import remove_leftovers
from src.records import MADE_BY_LOUPE, PARTS, FoldSplit, Item
from src.report.page import Page
from src.runs.rundir import RunDir
from src.wording import words_of


def run(cfg: Any, rundir: RunDir) -> dict[str, float]:
    """Writes `splits_<k>.csv`, `_bool` and `_descriptor` for `cfg.splits.n_folds` folds into `cfg.dataset.splits_dir`.

    Returns:
        The numbers of folds, slides and cases.

    Raises:
        ValueError: when the folder holds folds that this task did not make, or made otherwise and `overwrite` is not
            set; when there are too few cases.
    """
    splits_dir = Path(cfg.dataset.splits_dir)
    slides = list_items(cfg.dataset)
    # Folds stay as they are when labels are corrected: these only balanced them.
    (cases,) = CurrentInputs(cfg).read("all cases")
    options = {name: cfg.splits[name] for name in ("n_folds", "seed", "val_share")}
    origin = options | {"cases": cases.digest}
    rundir.record(cases)
    folds = make_folds(slides, **options)
    _clear_or_refuse(splits_dir, origin, cfg.overwrite or rundir.replaces)
    splits_dir.mkdir(parents=True, exist_ok=True)
    remove_leftovers(splits_dir)
    rundir.write_json(splits_dir / MADE_BY_LOUPE, origin)
    write_folds(folds, slides, splits_dir)
    words = words_of(cfg.dataset)
    rundir.add_table(
        "splits", _count(folds, slides), f"{words.items.capitalize()} and cases by fold and part.", 3 * len(folds)
    )
    n_cases = len({slide.case_id for slide in slides})
    results: dict[str, float] = {"n_folds": len(folds), "n_items": len(slides), "n_cases": n_cases}
    text = (
        f"{len(slides)} {words.items} of {n_cases} cases in {len(folds)} folds. Every {words.item} is a test "
        f"{words.item} once; all {words.items} of a case are in one part of a fold; every part "
        "holds about the same share of each class."
    )
    rundir.write_page(Page("Splits", [text], results))
    return results


def missing_inputs(cfg: Any) -> list[str]:
    """Returns why a pipeline need not make folds: the dataset brings its own."""
    splits_dir = Path(cfg.dataset.splits_dir)
    if _split_files(splits_dir) and not (splits_dir / MADE_BY_LOUPE).is_file():
        return [f"the dataset has splits at {splits_dir}"]
    return []


def _split_files(splits_dir: Path) -> list[Path]:
    return sorted([*splits_dir.glob("splits_*.csv"), *splits_dir.glob("rep*_fold*.csv")])


def _clear_or_refuse(splits_dir: Path, origin: dict[str, Any], overwrite: bool) -> None:
    """Makes room for folds: removes older ones of this task when asked to, and never anybody else's."""
    files = _split_files(splits_dir)
    if not files:
        return
    path = splits_dir / MADE_BY_LOUPE
    if not path.is_file():
        raise ValueError(
            f"Expected no splits in {splits_dir} to make new ones there, got {files[0].name} and {len(files) - 1} more "
            "that this task did not make; they are used as they are, so task=splits is not needed. To make others, "
            "give another dataset.splits_dir."
        )
    made = json.loads(path.read_text())
    if made == origin:
        return
    if not overwrite:
        changed = ", ".join(
            f"{key}: {made.get(key)} there, {origin[key]} here" for key in origin if made.get(key) != origin[key]
        )
        raise ValueError(
            f"Expected the splits in {splits_dir} to be made as this run would make them, got other ones ({changed}). "
            "overwrite=true makes them anew, and runs on the old folds are then stale; or give another "
            "dataset.splits_dir."
        )
    for file in files:
        file.unlink()


def _count(folds: list[FoldSplit], slides: list[Item]) -> pd.DataFrame:
    """Returns a row a fold and part: slides, cases, and slides of each class."""
    case_of = {slide.item_id: slide.case_id for slide in slides}
    rows = []
    for split, part in product(folds, PARTS):
        item_ids = split.item_ids(part)
        n_cases = len({case_of[item_id] for item_id in item_ids})
        row = {"fold": split.fold, "part": part, "n_items": len(item_ids), "n_cases": n_cases}
        rows.append(row | count_classes(split, slides)[part].to_dict())
    return pd.DataFrame(rows)
