"""Divides items into groups of whole cases with about equal shares of every class, as scikit-learn does and did."""

import warnings
from collections.abc import Sequence

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from src.records import Item

UNLABELLED = "unlabelled"
"""Items without a label are spread over the groups as a class is."""
_MANY = 20_000


def class_of(item: Item) -> str:
    """Returns the label by which an item is counted."""
    return item.label or UNLABELLED


def group_folds(
    items: Sequence[Item], n_groups: int, seed: int, shuffle: str = "scikit_learn", stratify_by: Sequence[str] = ()
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Divides items into groups, by case and stratified by label.

    Groups come from scikit-learn's StratifiedGroupKFold, those of more than 20,000 items that are each a case of its
    own from its StratifiedKFold; with `shuffle=legacy` from `legacy_groups`.

    Args:
        items: what is divided.
        n_groups: 2 or more.
        seed: of the shuffling.
        shuffle: `scikit_learn`, or `legacy`.
        stratify_by: further label columns of the items; their values and the label together are what is stratified.

    Returns:
        For every group the positions of all other items and its own, both ascending.

    Raises:
        ValueError: from scikit-learn, when there are fewer cases than groups.
    """
    classes = np.array(["||".join([class_of(item), *(item.labels[by] or "" for by in stratify_by)]) for item in items])
    cases = np.array([item.case_id for item in items])
    with warnings.catch_warnings():
        # A class with fewer items than groups: whoever asks for folds says it in terms of cases.
        warnings.filterwarnings("ignore", message="The least populated class")
        if shuffle == "legacy":
            group_of = legacy_groups(classes, cases, n_groups, seed)
            return [(np.flatnonzero(group_of != group), np.flatnonzero(group_of == group)) for group in range(n_groups)]
        # Grouping takes Python's time for every group: with as many cases as items there is nothing to group.
        is_large = len(items) > _MANY and len(set(cases)) == len(items)
        kind = StratifiedKFold if is_large else StratifiedGroupKFold
        folds = kind(n_groups, shuffle=True, random_state=seed)
        return list(folds.split(np.zeros(len(items)), classes, None if is_large else cases))


def legacy_groups(classes: np.ndarray, cases: np.ndarray, n_groups: int, seed: int) -> np.ndarray:
    """Divides items as StratifiedGroupKFold(shuffle=True) did in scikit-learn up to 1.7, in any version of it.

    It shuffled its table of class counts by case, chose a group for each line of the table, and then read the table as
    if it had not been shuffled: the case at position i got the group that was chosen for the case shuffled there. The
    groups are by case and of about equal size, but stratified only as far as chance has it. sae-1n's published folds
    were made so. The line's cases are given to an unshuffled StratifiedGroupKFold, which is the same in all versions.

    Args:
        classes: of the items, [n_items].
        cases: of the items, [n_items].
        n_groups: 2 or more.
        seed: of numpy's RandomState, which scikit-learn shuffles with.

    Returns:
        The group of each item, [n_items].
    """
    _, case_of = np.unique(cases, return_inverse=True)
    shuffled = np.arange(case_of.max() + 1)
    np.random.RandomState(seed).shuffle(shuffled)
    line_of = np.argsort(shuffled)[case_of]  # where the item's case lies in the shuffled table
    group_at = np.empty_like(shuffled)
    for group, (_, held_out) in enumerate(StratifiedGroupKFold(n_groups).split(classes, classes, line_of)):
        group_at[line_of[held_out]] = group
    return group_at[case_of]
