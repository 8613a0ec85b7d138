"""Makes the cross-validation folds of a dataset, once."""

import json
import logging
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from src.csv_tables import read_table
from src.data.current_inputs import CurrentInputs
from src.data.fold_table import list_items
from src.data.split_schemes import fixed_test_folds, monte_carlo_folds, one_split
from src.data.splits import count_classes, make_folds, write_folds
from src.files import remove_leftovers
from src.records import PARTS, Item
from src.report.page import Page
from src.runs.rundir import RunDir
from src.split_files import MADE_BY_LOUPE, FoldSplit
from src.wording import SLIDES, words_of

_LOGGER = logging.getLogger(__name__)
_COLUMN, _TEST = "split", "test"
# What a folder of folds was made with that says nothing of it.
_EARLIER = {"scheme": "kfold", "shuffle": "scikit_learn", "stratify_by": [], "test_share": 0.2}
_ABOUT = {
    "kfold": "Every {item} is a test {item} once",
    "fixed_test": "All folds share one test set, that of the csv: their spread shows training and validation splits, "
    "not other patients",
    "one_split": "One split: another with each `repeat`",
    "monte_carlo": "Test {items} are drawn anew for every fold, so that test sets overlap",
}

_BALANCE = {
    "scikit_learn": "What is drawn holds about the same share of each class in every part.",
    "legacy": "The order of scikit-learn up to 1.7 leaves the shares of the classes to chance.",
}


def run(cfg: Any, rundir: RunDir) -> dict[str, float]:
    """Writes the folds of `cfg.splits` into `cfg.dataset.splits_dir`: `splits_<k>.csv`, for slides also CLAM's others.

    Returns:
        The numbers of folds, slides and cases.

    Raises:
        ValueError: when the folder holds folds that this task did not make, or made otherwise and `overwrite` is not
            set; when there are too few cases.
    """
    splits_dir, options = Path(cfg.dataset.splits_dir), cfg.splits
    scheme = _scheme(cfg)
    columns = [*options.stratify_by, *([_COLUMN] if scheme == "fixed_test" else [])]
    slides = list_items(cfg.dataset, labels=columns)
    # Folds stay as they are when labels are corrected: these only balanced them.
    (cases,) = CurrentInputs(cfg).read("all cases")
    shared = {"seed": options.seed, "shuffle": options.shuffle, "stratify_by": list(options.stratify_by)}
    origin = shared | {"scheme": scheme, "n_folds": options.n_folds, "val_share": options.val_share}
    origin |= {"test_share": options.test_share, "cases": cases.digest}
    rundir.record(cases)
    if scheme == "fixed_test":
        test = {slide.item_id for slide in slides if slide.labels[_COLUMN] == _TEST}
        folds = fixed_test_folds(slides, test, options.n_folds, **shared)
    elif scheme == "one_split":
        folds = one_split(slides, options.n_folds, **shared)
    elif scheme == "monte_carlo":
        shares = {"val_share": options.val_share, "test_share": options.test_share}
        folds = monte_carlo_folds(slides, options.n_folds, **shares, **shared)
    else:
        folds = make_folds(slides, options.n_folds, val_share=options.val_share, **shared)
    _clear_or_refuse(splits_dir, origin, cfg.overwrite or rundir.replaces)
    splits_dir.mkdir(parents=True, exist_ok=True)
    remove_leftovers(splits_dir)
    rundir.write_json(splits_dir / MADE_BY_LOUPE, origin)
    words = words_of(cfg.dataset)
    # sae-1n's descriptors leave the test slides out.
    write_folds(folds, slides, splits_dir, PARTS[:2] if options.shuffle == "legacy" else PARTS, words is SLIDES)
    rundir.add_table(
        "splits", _count(folds, slides), f"{words.items.capitalize()} and cases by fold and part.", 3 * len(folds)
    )
    n_cases = len({slide.case_id for slide in slides})
    results: dict[str, float] = {"n_folds": len(folds), "n_items": len(slides), "n_cases": n_cases}
    about = _ABOUT[scheme].format(**words._asdict())
    text = (
        f"{len(slides)} {words.items} of {n_cases} cases in {len(folds)} folds. {about}; all {words.items} of a case "
        f"are in one part of a fold. {_BALANCE[options.shuffle]}"
    )
    _LOGGER.info("%s", text)
    rundir.write_page(Page("Splits", [text], results))
    return results


def missing_inputs(cfg: Any) -> list[str]:
    """Returns why a pipeline need not make folds: the dataset brings its own."""
    splits_dir = Path(cfg.dataset.splits_dir)
    if _split_files(splits_dir) and not (splits_dir / MADE_BY_LOUPE).is_file():
        return [f"the dataset has splits at {splits_dir}"]
    return []


def _scheme(cfg: Any) -> str:
    if cfg.splits.scheme != "auto":
        return cfg.splits.scheme
    table = read_table(cfg.dataset.metadata_csv)
    return "fixed_test" if _TEST in table.get(_COLUMN, []) else "kfold"


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
    made = _EARLIER | json.loads(path.read_text())
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
