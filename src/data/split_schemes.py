"""Ways to make folds other than cross-validation: a fixed test set, one division in ten, and random draws."""

from collections.abc import Collection, Sequence

import numpy as np

from src.data.group_folds import group_folds
from src.data.splits import as_fold, in_order, most_folds, take_share
from src.records import PARTS, Item
from src.split_files import FoldSplit

_FITTED = ("train", "val")


def fixed_test_folds(
    slides: Sequence[Item],
    test: Collection[str],
    n_folds: int,
    seed: int,
    shuffle: str = "scikit_learn",
    stratify_by: Sequence[str] = (),
) -> list[FoldSplit]:
    """Divides what is not in a test set that all folds share: the k-th group validates fold k.

    No cross-validation: the folds say how results vary with the training slides, and of other patients nothing. The
    folds of CAMELYON16 that sae-1n published are of this kind (5 folds, seed 42, `shuffle=legacy`).

    Args:
        slides: all slides of the data set.
        test: the ids of the test slides.
        n_folds: 2 or more.
        seed: of the shuffling.
        shuffle: see `group_folds`.
        stratify_by: see `group_folds`.

    Raises:
        ValueError: when there are no test slides, a case has slides inside and outside of the test set, or a part of
            a fold would lack a class.
    """
    slides = in_order(slides, n_folds)
    held_out = np.array([slide.item_id in test for slide in slides])
    tested, others = np.flatnonzero(held_out), np.flatnonzero(~held_out)
    if not len(tested) or not len(others):
        raise ValueError(
            f"Expected some of {len(slides)} slides in the fixed test set, got {len(tested)}: name them `test` in the "
            "column `split` of dataset.metadata_csv, or give splits.scheme=kfold."
        )
    if both := {slides[i].case_id for i in tested} & {slides[i].case_id for i in others}:
        raise ValueError(
            f"Expected the slides of a case inside or outside of the test set, got both of {min(both)!r}: correct the "
            "column `split` of dataset.metadata_csv."
        )
    rest = [slides[i] for i in others]

    def draw(n_folds: int) -> list[FoldSplit]:
        groups = group_folds(rest, n_folds, seed, shuffle, stratify_by)
        return [as_fold(k, slides, others[train], others[val], tested) for k, (train, val) in enumerate(groups)]

    return most_folds(draw, n_folds, slides, _FITTED)


def one_split(
    slides: Sequence[Item],
    n_groups: int,
    seed: int,
    shuffle: str = "scikit_learn",
    stratify_by: Sequence[str] = (),
) -> list[FoldSplit]:
    """Divides slides once, into all but two of `n_groups` groups to train on, one to validate and one to test.

    With ten groups 80, 10 and 10 %: the split of PANDA that sae-1n published (seed 42, `shuffle=legacy`, stratified by
    label and provider). Which groups validate and test is shuffled with the same seed. Other seeds give other draws.

    Args:
        slides: all slides of the data set.
        n_groups: 3 or more.
        seed: of the shuffling.
        shuffle: see `group_folds`.
        stratify_by: see `group_folds`.

    Raises:
        ValueError: when there are fewer than three groups, or a part would lack a class.
    """
    if n_groups < 3:
        raise ValueError(f"Expected splits.n_folds of at least 3 with splits.scheme=one_split, got {n_groups}.")
    slides = in_order(slides, n_groups)

    def draw(n_groups: int) -> list[FoldSplit]:
        groups = [held_out for _, held_out in group_folds(slides, n_groups, seed, shuffle, stratify_by)]
        order = np.arange(n_groups)
        np.random.RandomState(seed).shuffle(order)
        *trained, val, test = (groups[i] for i in order)
        return [as_fold(0, slides, np.sort(np.concatenate(trained)), val, test)]

    return most_folds(draw, n_groups, slides, PARTS)


def monte_carlo_folds(
    slides: Sequence[Item],
    n_folds: int,
    seed: int,
    val_share: float,
    test_share: float,
    shuffle: str = "scikit_learn",
    stratify_by: Sequence[str] = (),
) -> list[FoldSplit]:
    """Draws test and validation slides anew for every fold, by case and stratified: Monte-Carlo cross-validation.

    Test sets of several folds overlap, and some slides may never be tested.

    Args:
        slides: all slides of the data set.
        n_folds: the number of draws.
        seed: of all draws; that of draw k is derived from it.
        val_share: of all slides.
        test_share: of all slides; a share of the form 1/n is met best.
        shuffle: see `group_folds`.
        stratify_by: see `group_folds`.

    Raises:
        ValueError: when an option is out of its range, or a part of a draw would lack a class.
    """
    slides = in_order(slides, n_folds, val_share=val_share, test_share=test_share)
    every = np.arange(len(slides))

    def draw(n_folds: int) -> list[FoldSplit]:
        folds = []
        for fold in range(n_folds):
            own = int(np.random.SeedSequence([seed, fold]).generate_state(1)[0])
            rest, test = take_share(slides, every, 1 / test_share, own, shuffle, stratify_by)
            train, val = take_share(slides, rest, (1 - test_share) / val_share, own, shuffle, stratify_by)
            folds.append(as_fold(fold, slides, train, val, test))
        return folds

    return most_folds(draw, n_folds, slides, PARTS)
