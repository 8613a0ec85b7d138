import random

import pandas as pd
import pytest

from src.data.splits import count_classes, make_folds, write_folds
from src.records import Item, read_items
from src.split_files import check_split, read_split


def make_slides(n_cases=30, slides_per_case=2, classes=("normal", "tumor")):
    return [
        Item(f"{case:03d}_{i}", f"{case:03d}", classes[case % len(classes)])
        for case in range(n_cases)
        for i in range(slides_per_case if case % 3 else 1)
    ]


@pytest.mark.parametrize("n_folds", [2, 3, 5, 10])
@pytest.mark.parametrize("classes", [("normal", "tumor"), ("a", "b", "c")])
def test_folds_are_by_case_and_every_slide_is_tested_once(n_folds, classes):
    slides = make_slides(n_cases=36, classes=classes)
    folds = make_folds(slides, n_folds, seed=1)
    assert [split.fold for split in folds] == list(range(n_folds))
    tested = sorted(item_id for split in folds for item_id in split.test)
    assert tested == sorted(slide.item_id for slide in slides)
    for split in folds:
        check_split(split, slides)
        assert len(split.item_ids("train+val+test")) == len(slides)
        counts = count_classes(split, slides)
        assert (counts > 0).all().all()


def test_parts_are_stratified():
    slides = make_slides(n_cases=100, slides_per_case=1)
    for split in make_folds(slides, 5, seed=0, val_share=0.2):
        counts = count_classes(split, slides)
        assert counts["test"].tolist() == [10, 10]
        assert counts["val"].tolist() == [10, 10]
        assert counts["train"].tolist() == [30, 30]


def test_validation_takes_its_share_of_all_slides():
    slides = make_slides(n_cases=100, slides_per_case=1)
    for share, expected in ((0.1, 5), (0.2, 10), (0.4, 20)):
        for split in make_folds(slides, 5, seed=0, val_share=share):
            assert count_classes(split, slides)["val"].tolist() == [expected, expected]
    with pytest.raises(ValueError, match=r"val_share above 0 and below 1, got 1\.5"):
        make_folds(slides, 5, seed=0, val_share=1.5)


def test_seed_alone_decides():
    slides = make_slides()
    shuffled = random.Random(0).sample(slides, len(slides))
    assert make_folds(slides, 5, seed=0) == make_folds(shuffled, 5, seed=0)
    assert make_folds(slides, 5, seed=0) != make_folds(slides, 5, seed=1)


def test_too_few_cases_says_the_largest_number_of_folds():
    slides = [Item(f"n{i}", f"n{i}", "normal") for i in range(20)]
    slides += [Item(f"t{i}", f"t{i // 3}", "tumor") for i in range(12)]  # 12 slides of 4 cases
    with pytest.raises(ValueError, match=r"each of 10 folds.*normal: 20, tumor: 4.*splits\.n_folds=4"):
        make_folds(slides, 10, seed=0)
    assert len(make_folds(slides, 4, seed=0)) == 4
    with pytest.raises(ValueError, match=r"tumor: 2\); no number of folds works"):
        make_folds(slides[:26], 5, seed=0)
    with pytest.raises(ValueError, match="at least 2, got 1"):
        make_folds(slides, 1, seed=0)


def test_files_are_read_back_in_both_forms(tmp_path):
    slides = make_slides()
    folds = make_folds(slides, 3, seed=0)
    write_folds(folds, slides, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        f"splits_{k}{suffix}.csv" for k in range(3) for suffix in ("", "_bool", "_descriptor")
    )
    for split in folds:
        assert read_split(tmp_path, split.fold) == split
        (tmp_path / f"splits_{split.fold}.csv").unlink()
        flagged = read_split(tmp_path, split.fold)
        for part in ("train", "val", "test"):
            assert set(flagged.item_ids(part)) == set(split.item_ids(part))
        descriptor = pd.read_csv(tmp_path / f"splits_{split.fold}_descriptor.csv", index_col=0)
        pd.testing.assert_frame_equal(descriptor, count_classes(split, slides), check_names=False)


def test_without_clams_files_a_fold_is_one(tmp_path):
    folds = make_folds(make_slides(), 2, seed=0)
    write_folds(folds, make_slides(), tmp_path, for_clam=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["splits_0.csv", "splits_1.csv"]
    assert [read_split(tmp_path, split.fold) for split in folds] == folds


@pytest.mark.realdata
def test_real_folders(data_dir):
    for path in sorted((data_dir / "mil").glob("*/dataset.csv")):
        slides = read_items(path)
        for split in make_folds(slides, 5, seed=0):
            check_split(split, slides)


@pytest.mark.realdata
def test_published_files_look_like_ours(data_dir, tmp_path):
    published = data_dir / "tables" / "sae1n"
    slides = read_items(published / "camelyon16_metadata.csv")
    split = read_split(published, 0)
    check_split(split, slides)
    write_folds([split], slides, tmp_path)
    assert (tmp_path / "splits_0.csv").read_text().split() == (published / "splits_0.csv").read_text().split()
    assert (tmp_path / "splits_0_bool.csv").read_text().split() == (published / "splits_0_bool.csv").read_text().split()
    ours, theirs = (pd.read_csv(folder / "splits_0_descriptor.csv", index_col=0) for folder in (tmp_path, published))
    assert list(ours.columns) == ["train", "val", "test"]
    pd.testing.assert_frame_equal(ours[theirs.columns], theirs)


def test_many_items_that_are_cases_of_their_own_are_stratified_too():
    items = [Item(f"i{number:06d}", f"c{number:06d}", "ab"[number % 4 == 0]) for number in range(40_000)]
    folds = make_folds(items, 5, seed=0)
    assert sorted(one for fold in folds for one in fold.test) == [item.item_id for item in items]
    assert [len(fold.test) for fold in folds] == [8000] * 5
    for fold in folds:
        assert sum(int(one[1:]) % 4 == 0 for one in fold.test) == 2000
        assert not set(fold.train) & set(fold.val + fold.test)
