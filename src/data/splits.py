"""Makes cross-validation folds by case, and writes them as CLAM does."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from src.data.group_folds import class_of, group_folds
from src.files import write_atomically
from src.records import PARTS, Item
from src.split_files import FoldSplit


def make_folds(
    slides: Sequence[Item],
    n_folds: int,
    seed: int,
    val_share: float = 0.1,
    shuffle: str = "scikit_learn",
    stratify_by: Sequence[str] = (),
) -> list[FoldSplit]:
    """Divides slides into nested cross-validation folds, stratified by label and grouped by case.

    The test slides of fold k are the k-th of `n_folds` groups, so every slide is a test slide once. Of the rest about
    `val_share` of all slides is taken for validation, again stratified and by case, with at least one case of every
    class, and what remains is trained on. The order of `slides` does not matter.

    Args:
        slides: all slides of the data set.
        n_folds: 2 or more.
        seed: of the shuffling.
        val_share: of all slides, above 0 and below 1; CLAM's default is 0.1.
        shuffle: see `group_folds`.
        stratify_by: see `group_folds`.

    Raises:
        ValueError: when an option is out of its range, or some part of some fold would lack a class; says the largest
            number of folds that works.
    """
    slides = in_order(slides, n_folds, val_share=val_share)

    def draw(n_folds: int) -> list[FoldSplit]:
        folds = []
        for fold, (rest, test) in enumerate(group_folds(slides, n_folds, seed, shuffle, stratify_by)):
            train, val = take_share(slides, rest, (1 - 1 / n_folds) / val_share, seed, shuffle, stratify_by)
            folds.append(as_fold(fold, slides, train, val, test))
        return folds

    return most_folds(draw, n_folds, slides, PARTS)


def in_order(slides: Sequence[Item], n_folds: int, **shares: float) -> list[Item]:
    """Returns the slides sorted by id, after the options of a scheme were checked.

    Raises:
        ValueError: when an option is out of its range.
    """
    if n_folds < 2:
        raise ValueError(f"Expected splits.n_folds of at least 2, got {n_folds}.")
    for name, share in shares.items():
        if not 0 < share < 1:
            raise ValueError(f"Expected splits.{name} above 0 and below 1, got {share}.")
    if sum(shares.values()) >= 1:
        raise ValueError(f"Expected shares of validation and test slides that leave some to train on, got {shares}.")
    return sorted(slides, key=lambda slide: slide.item_id)


def take_share(
    slides: Sequence[Item], rows: np.ndarray, n_groups: float, seed: int, shuffle: str, stratify_by: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Divides some of the slides into those that stay and one of `n_groups` groups, with a case of every class.

    Args:
        slides: all.
        rows: positions of those that are divided, ascending.
        n_groups: rounded, and not more than cases of the rarest class: each group can hold one.
        seed: of the shuffling.
        shuffle: see `group_folds`.
        stratify_by: see `group_folds`.

    Returns:
        The positions of those that stay and of those taken.
    """
    divided = [slides[i] for i in rows]
    most = min(map(len, _cases_by_class(divided).values()))
    stays, taken = group_folds(divided, max(min(round(n_groups), most), 2), seed, shuffle, stratify_by)[0]
    return rows[stays], rows[taken]


def as_fold(fold: int, slides: Sequence[Item], *parts: np.ndarray) -> FoldSplit:
    """Returns a fold of the slides at given positions, for train, val and test."""
    return FoldSplit(fold, *(tuple(slides[i].item_id for i in rows) for rows in parts))


def most_folds(
    draw: Callable[[int], list[FoldSplit]], n_folds: int, slides: Sequence[Item], parts: Sequence[str]
) -> list[FoldSplit]:
    """Returns the folds that a function draws, when each of the parts has every class.

    Raises:
        ValueError: when it has not; says the largest number of folds that works.
    """

    def attempt(n_folds: int) -> list[FoldSplit] | None:
        try:
            folds = draw(n_folds)
        except ValueError as error:
            if "n_splits=" not in str(error):
                raise
            return None
        return folds if all((count_classes(split, slides)[[*parts]].to_numpy() > 0).all() for split in folds) else None

    if (folds := attempt(n_folds)) is not None:
        return folds
    largest = next((k for k in range(n_folds - 1, 1, -1) if attempt(k) is not None), None)
    cases = ", ".join(f"{label}: {len(case_ids)}" for label, case_ids in _cases_by_class(slides).items())
    remedy = (
        f"the largest number of folds that works is {largest}: give splits.n_folds={largest}"
        if largest
        else "no number of folds works: a class needs at least three cases"
    )
    raise ValueError(
        f"Expected every class in the {', '.join(parts[:-1])} and {parts[-1]} part of each of {n_folds} folds by case, "
        f"got too few cases ({cases}); {remedy}."
    )


def write_folds(
    folds: Sequence[FoldSplit],
    slides: Sequence[Item],
    splits_dir: str | Path,
    counted: Sequence[str] = PARTS,
    for_clam: bool = True,
) -> None:
    """Writes `splits_<k>.csv` for each fold, and the two files that CLAM keeps beside it.

    `splits_<k>.csv` has the columns train, val and test, ragged and without index; `splits_<k>_bool.csv` a row a slide,
    sorted, with a boolean a part; `splits_<k>_descriptor.csv` a row a class with the number of slides a part. CLAM and
    sae-1n read all three, Loupe the first.

    Args:
        folds: what is written.
        slides: all slides of the data set.
        splits_dir: the folder.
        counted: the parts in the descriptor; sae-1n counts train and val.
        for_clam: whether the last two are written: of slides alone is there anything in CLAM that reads them.
    """
    rows = pd.Index(sorted(slide.item_id for slide in slides), name="slide_id")
    for split in folds:
        parts = {part: split.item_ids(part) for part in PARTS}
        listed = pd.DataFrame({part: pd.Series(item_ids, dtype=object) for part, item_ids in parts.items()})
        flags = pd.DataFrame({part: rows.isin(item_ids) for part, item_ids in parts.items()}, index=rows)
        # The list last, because readers take it first: a fold that has it is whole.
        counts = count_classes(split, slides)[[*counted]]
        beside = {"_descriptor": counts, "_bool": flags} if for_clam else {}
        for kind, table in {**beside, "": listed}.items():
            with write_atomically(Path(splits_dir) / f"splits_{split.fold}{kind}.csv") as temporary:
                table.to_csv(temporary, index=bool(kind))


def count_classes(split: FoldSplit, slides: Sequence[Item]) -> pd.DataFrame:
    """Returns the number of slides of each class (rows) in each part (columns) of a fold."""
    labels: Any = pd.Series({slide.item_id: class_of(slide) for slide in slides})
    counts = {part: labels.loc[list(split.item_ids(part))].value_counts() for part in PARTS}
    return pd.DataFrame(counts, index=pd.Index(sorted(labels.unique()))).fillna(0).astype(int)


def _cases_by_class(slides: Sequence[Item]) -> dict[str, set[str]]:
    """Returns the case ids of each class, classes sorted."""
    cases: dict[str, set[str]] = {class_of(slide): set() for slide in sorted(slides, key=class_of)}
    for slide in slides:
        cases[class_of(slide)].add(slide.case_id)
    return cases
