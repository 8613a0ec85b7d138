"""Folds other than cross-validation, and the published files that they reproduce."""

import collections

import numpy as np
import pytest

from src.data.group_folds import group_folds, legacy_groups
from src.data.split_schemes import fixed_test_folds, monte_carlo_folds, one_split
from src.data.splits import count_classes, make_folds, write_folds
from src.records import Item, read_items
from src.split_files import check_split


def make_slides(n_cases=60):
    """Two slides of every third case; every fourth case is a tumour; two centres."""
    return [
        Item(f"{case:03d}_{i}", f"{case:03d}", ("normal", "tumor")[case % 4 == 0], {"center": "ab"[case // 4 % 2]})
        for case in range(n_cases)
        for i in range(2 if case % 3 == 0 else 1)
    ]


def test_legacy_groups_are_whole_cases_of_about_equal_size():
    slides = make_slides()
    tested = collections.Counter()
    for rest, held_out in group_folds(slides, 5, seed=42, shuffle="legacy"):
        tested.update(slides[i].item_id for i in held_out)
        assert not {slides[i].case_id for i in rest} & {slides[i].case_id for i in held_out}
        assert len(held_out) == pytest.approx(16, abs=4)
    assert set(tested.values()) == {1}
    assert len(tested) == len(slides)


def test_legacy_order_gives_case_i_the_group_of_the_case_shuffled_there():
    # All cases alike: lines 0, 1, 2, ... of the table get groups 0, 1, 2, ..., whatever was shuffled there.
    classes, cases = np.array(["x", "y"] * 6), np.repeat(np.arange(6), 2)
    assert legacy_groups(classes, cases, 3, seed=0).tolist() == np.repeat([0, 1, 2, 0, 1, 2], 2).tolist()


def test_a_fixed_test_set_is_shared_and_the_others_validate_once():
    slides = make_slides()
    test = {slide.item_id for slide in slides if int(slide.case_id) >= 48}
    folds = fixed_test_folds(slides, test, 4, seed=0)
    validated = [one for split in folds for one in split.val]
    assert sorted(validated) == sorted(slide.item_id for slide in slides if slide.item_id not in test)
    for split in folds:
        check_split(split, slides, needed=("train", "val", "test"))
        assert set(split.test) == test
        assert len(split.item_ids("train+val+test")) == len(slides)


def test_a_test_set_that_parts_a_case_or_is_empty_is_refused():
    slides = make_slides()
    with pytest.raises(ValueError, match=r"inside or outside of the test set, got both of '003'"):
        fixed_test_folds(slides, {"003_0"}, 4, seed=0)
    with pytest.raises(ValueError, match=r"fixed test set, got 0: name them `test` in the column `split`"):
        fixed_test_folds(slides, {"nobody"}, 4, seed=0)


def test_one_split_is_80_10_10_and_balanced_by_further_columns():
    slides = make_slides(400)
    (split,) = one_split(slides, 10, seed=1, stratify_by=["center"])
    check_split(split, slides, needed=("train", "val", "test"))
    assert [len(split.item_ids(part)) for part in ("train", "val", "test")] == pytest.approx([427, 53, 53], abs=3)
    centers = {slide.item_id: slide.labels["center"] for slide in slides}
    for part in ("val", "test"):
        assert np.mean([centers[one] == "a" for one in getattr(split, part)]) == pytest.approx(0.5, abs=0.05)
    assert one_split(slides, 10, seed=1) != one_split(slides, 10, seed=2)
    with pytest.raises(ValueError, match=r"at least 3 with splits\.scheme=one_split, got 2"):
        one_split(slides, 2, seed=0)


def test_monte_carlo_draws_every_fold_anew():
    slides = make_slides(200)
    folds = monte_carlo_folds(slides, 6, seed=0, val_share=0.1, test_share=0.25)
    for split in folds:
        check_split(split, slides)
        shares = [len(split.item_ids(part)) / len(slides) for part in ("val", "test")]
        assert shares == pytest.approx([0.1, 0.25], abs=0.02)
        assert (count_classes(split, slides) > 0).all(axis=None)
    assert len({split.test for split in folds}) == 6
    assert folds[:3] == monte_carlo_folds(slides, 3, seed=0, val_share=0.1, test_share=0.25)
    with pytest.raises(ValueError, match="leave some to train on"):
        monte_carlo_folds(slides, 3, seed=0, val_share=0.5, test_share=0.5)


def test_too_few_cases_of_a_class_are_said_for_every_scheme():
    slides = [Item(f"n{i}", f"n{i}", "normal") for i in range(20)] + [Item(f"t{i}", f"t{i}", "tumor") for i in range(3)]
    with pytest.raises(ValueError, match=r"train and val part of each of 5 folds.*tumor: 3\).*splits\.n_folds=2"):
        fixed_test_folds(slides, {"n0", "t0"}, 5, seed=0)
    with pytest.raises(ValueError, match=r"train, val and test part of each of 10 folds"):
        one_split(slides, 10, seed=0)


@pytest.mark.realdata
def test_published_files_of_camelyon16_are_reproduced_byte_for_byte(data_dir, tmp_path):
    published = data_dir / "tables" / "sae1n"
    slides = read_items(published / "camelyon16_metadata.csv", labels=["split"])
    test = [slide.item_id for slide in slides if slide.labels["split"] == "test"]
    folds = fixed_test_folds(slides, test, 5, seed=42, shuffle="legacy")
    write_folds(folds, slides, tmp_path, counted=("train", "val"))
    paths = sorted(published.glob("splits_*.csv"))
    assert len(paths) >= 3
    for path in paths:
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


@pytest.mark.slow
@pytest.mark.realdata
def test_the_published_split_of_panda_is_reproduced(data_dir):
    slides = read_items(data_dir / "tables" / "sae1n" / "panda_metadata.csv", labels=["data_provider"])
    (split,) = one_split(slides, 10, seed=42, shuffle="legacy", stratify_by=["data_provider"])
    strata = {slide.item_id: f"{slide.labels['data_provider'][:3]} {slide.label[0]}" for slide in slides}
    counts = {part: collections.Counter(strata[one] for one in getattr(split, part)) for part in ("train", "test")}
    assert counts["train"] == {"rad t": 3312, "kar t": 2871, "kar n": 1522, "rad n": 787}
    assert counts["test"] == {"rad t": 430, "kar t": 342, "kar n": 194, "rad n": 95}


def test_todays_order_stays_the_default():
    slides = make_slides()
    assert make_folds(slides, 5, seed=42) != make_folds(slides, 5, seed=42, shuffle="legacy")
    assert make_folds(slides, 5, 42) == make_folds(slides, 5, 42, shuffle="scikit_learn")
