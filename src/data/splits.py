"""Makes cross-validation folds by case, and writes them as CLAM does."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from src.files import write_atomically
from src.records import PARTS, FoldSplit, Item

# Items without a label are spread over the folds as a class is.
_UNLABELLED = "unlabelled"
_MANY = 20_000


def make_folds(slides: Sequence[Item], n_folds: int, seed: int, val_share: float = 0.1) -> list[FoldSplit]:
    """Divides slides into nested cross-validation folds, stratified by label and grouped by case.

    The test slides of fold k are the k-th of `n_folds` groups, so every slide is a test slide once. Of the rest about
    `val_share` of all slides is taken for validation, again stratified and by case, with at least one case of every
    class, and what remains is trained on. Groups come from scikit-learn's StratifiedGroupKFold, those of more than
    20,000 items that are each a case of its own from its StratifiedKFold. The order of `slides` does not matter.

    Args:
        slides: all slides of the data set.
        n_folds: 2 or more.
        seed: of the shuffling.
        val_share: of all slides, above 0 and below 1; CLAM's default is 0.1.

    Raises:
        ValueError: when an option is out of its range, or some part of some fold would lack a class; says the largest
            number of folds that works.
    """
    if n_folds < 2:
        raise ValueError(f"Expected splits.n_folds of at least 2, got {n_folds}.")
    if not 0 < val_share < 1:
        raise ValueError(f"Expected splits.val_share above 0 and below 1, got {val_share}.")
    slides = sorted(slides, key=lambda slide: slide.item_id)
    folds = _try_folds(slides, n_folds, seed, val_share)
    if folds is not None:
        return folds
    largest = next((k for k in range(n_folds - 1, 1, -1) if _try_folds(slides, k, seed, val_share)), None)
    cases = ", ".join(f"{label}: {len(case_ids)}" for label, case_ids in _cases_by_class(slides).items())
    remedy = (
        f"the largest number of folds that works is {largest}: give splits.n_folds={largest}"
        if largest
        else "no number of folds works: a class needs at least three cases"
    )
    raise ValueError(
        f"Expected every class in the train, val and test part of each of {n_folds} folds by case, got too few cases "
        f"({cases}); {remedy}."
    )


def write_folds(folds: Sequence[FoldSplit], slides: Sequence[Item], splits_dir: str | Path) -> None:
    """Writes the three files that CLAM keeps for each fold.

    `splits_<k>.csv` has the columns train, val and test, ragged and without index; `splits_<k>_bool.csv` a row a slide,
    sorted, with a boolean a part; `splits_<k>_descriptor.csv` a row a class with the number of slides a part. CLAM and
    sae-1n read all three.
    """
    rows = pd.Index(sorted(slide.item_id for slide in slides), name="slide_id")
    for split in folds:
        parts = {part: split.item_ids(part) for part in PARTS}
        listed = pd.DataFrame({part: pd.Series(item_ids, dtype=object) for part, item_ids in parts.items()})
        flags = pd.DataFrame({part: rows.isin(item_ids) for part, item_ids in parts.items()}, index=rows)
        # The list last, because readers take it first: a fold that has it is whole.
        for kind, table in {"_descriptor": count_classes(split, slides), "_bool": flags, "": listed}.items():
            with write_atomically(Path(splits_dir) / f"splits_{split.fold}{kind}.csv") as temporary:
                table.to_csv(temporary, index=bool(kind))


def count_classes(split: FoldSplit, slides: Sequence[Item]) -> pd.DataFrame:
    """Returns the number of slides of each class (rows) in each part (columns) of a fold."""
    labels: Any = pd.Series({slide.item_id: _class(slide) for slide in slides})
    counts = {part: labels.loc[list(split.item_ids(part))].value_counts() for part in PARTS}
    return pd.DataFrame(counts, index=pd.Index(sorted(labels.unique()))).fillna(0).astype(int)


def _try_folds(slides: Sequence[Item], n_folds: int, seed: int, val_share: float) -> list[FoldSplit] | None:
    """Returns the folds, or None when a part would lack a class."""
    folds = []
    try:
        for fold, (rest, test) in enumerate(_group_folds(slides, n_folds, seed)):
            remaining = [slides[i] for i in rest]
            # No more groups than the rarest class has cases: each can hold one.
            n_groups = min(round((1 - 1 / n_folds) / val_share), *map(len, _cases_by_class(remaining).values()))
            train, val = _group_folds(remaining, max(n_groups, 2), seed)[0]
            parts = (rest[train], rest[val], test)
            folds.append(FoldSplit(fold, *(tuple(slides[i].item_id for i in rows) for rows in parts)))
    except ValueError as error:
        if "n_splits=" not in str(error):
            raise
        return None
    has_all = all((count_classes(split, slides) > 0).all(axis=None) for split in folds)
    return folds if has_all else None


def _group_folds(slides: Sequence[Item], n_folds: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    cases = [slide.case_id for slide in slides]
    # Grouping takes Python's time for every group: with as many cases as items there is nothing to group.
    is_large = len(slides) > _MANY and len(set(cases)) == len(slides)
    kind = StratifiedKFold if is_large else StratifiedGroupKFold
    folds = kind(n_folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # A class with fewer slides than folds: answered by `make_folds`, in terms of cases.
        warnings.filterwarnings("ignore", message="The least populated class")
        return list(folds.split(np.zeros(len(slides)), [*map(_class, slides)], None if is_large else cases))


def _cases_by_class(slides: Sequence[Item]) -> dict[str, set[str]]:
    """Returns the case ids of each class, classes sorted."""
    cases: dict[str, set[str]] = {_class(slide): set() for slide in sorted(slides, key=_class)}
    for slide in slides:
        cases[_class(slide)].add(slide.case_id)
    return cases


def _class(slide: Item) -> str:
    return slide.label or _UNLABELLED
