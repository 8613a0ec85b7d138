import pytest
from omegaconf import OmegaConf

from src.data.fold_table import read_fold
from src.data.validation import carve_validation
from src.records import Item, read_items
from src.split_files import FoldSplit, check_split


def make_fold(n_cases=40, n_test=4):
    items = {}
    for case in range(n_cases):
        for i in range(1 + case % 3):
            items[f"{case:02d}_{i}"] = Item(f"{case:02d}_{i}", f"{case:02d}", "ab"[case % 4 == 0])
    test = tuple(one for one in items if int(items[one].case_id) < n_test)
    return FoldSplit(0, tuple(one for one in items if one not in test), (), test), items


def test_validation_takes_its_share_of_every_class_by_case():
    split, items = make_fold()
    carved = carve_validation(split, items, 0.2, seed=0)
    check_split(carved, list(items.values()), needed=("train", "val", "test"))  # whole cases
    assert sorted(carved.train + carved.val) == sorted(split.train)
    assert carved.test == split.test
    for label in "ab":
        of_class = [one for one in split.train if items[one].label == label]
        taken = [one for one in carved.val if items[one].label == label]
        assert len(taken) == pytest.approx(0.2 * len(items) * len(of_class) / len(split.train), abs=1.5)


def test_the_seed_alone_decides():
    split, items = make_fold()
    shuffled = FoldSplit(0, split.train[::-1], (), split.test)
    assert set(carve_validation(shuffled, items, 0.2, 0).val) == set(carve_validation(split, items, 0.2, 0).val)
    assert set(carve_validation(split, items, 0.2, 1).val) != set(carve_validation(split, items, 0.2, 0).val)


def test_every_class_keeps_a_case_on_both_sides():
    items = {one: Item(one, one, label) for one, label in zip("abcdefg", "nnnnttm", strict=True)}
    carved = carve_validation(FoldSplit(0, tuple(items), (), ()), items, 0.01, seed=0)
    assert sorted(items[one].label for one in carved.val) == ["n", "t"]  # of the one case of m none
    carved = carve_validation(FoldSplit(0, tuple(items), (), ()), items, 0.99, seed=0)
    assert sorted(items[one].label for one in carved.train) == ["m", "n", "t"]


def config(folder, splits_dir, repeat=0):
    dataset = {"metadata_csv": str(folder / "dataset.csv"), "splits_dir": str(splits_dir)}
    dataset |= {"class_names": None, "positive_class": None}
    return OmegaConf.create({"dataset": dataset, "repeat": repeat, "splits": {"val_share": 0.2, "seed": repeat}})


def test_files_of_repeats_are_read_and_a_missing_part_is_carved_and_said(tmp_path, caplog):
    caplog.set_level("INFO")
    rows = [f"s{i},{'xy'[i % 2]}" for i in range(20)]
    (tmp_path / "dataset.csv").write_text("\n".join(["slide_id,label", *rows]) + "\n")
    lists = [[f"s{i}" for i in range(20) if i % 10 != repeat] for repeat in range(2)]
    for repeat, train in enumerate(lists):
        test = [f"s{repeat}", f"s{repeat + 10}"] + [""] * (len(train) - 2)
        lines = [",".join(pair) for pair in zip(train, test, strict=True)]
        (tmp_path / f"rep{repeat}_fold0.csv").write_text("\n".join(["train,test", *lines]) + "\n")
    tables = [read_fold(config(tmp_path, tmp_path, repeat), 0, ("train", "test")) for repeat in range(2)]
    for repeat, (table, train) in enumerate(zip(tables, lists, strict=True)):
        assert sorted(table.split.train + table.split.val) == sorted(train)
        assert len(table.split.val) == 4
        assert table.split.test == (f"s{repeat}", f"s{repeat + 10}")
        assert table.input("split val").path.endswith(f"rep{repeat}_fold0.csv")
        table.say_what_was_carved()
        assert f"rep{repeat}_fold0.csv has no column val: 4 of its 18 train items validate" in caplog.text
    with pytest.raises(FileNotFoundError, match=r"fold 0 \(repeat 2\) at rep2_fold0\.csv in .*, found none"):
        read_fold(config(tmp_path, tmp_path, 2), 0, ())
    # A column val that is empty says that there is no validation.
    (tmp_path / "splits_0.csv").write_text("train,val,test\ns0,,s1\ns2,,\n")
    assert read_fold(config(tmp_path, tmp_path), 0, ()).split.val == ()


@pytest.mark.realdata
def test_repeats_of_real_sources_test_every_item_once(data_dir):
    for folder in sorted((data_dir / "mil").iterdir()):
        items = read_items(folder / "dataset.csv")
        for repeat in range(5):
            tested = []
            for fold in range(10):
                split = read_fold(config(folder, folder / "splits", repeat), fold, ("train", "test")).split
                assert len(split.val) == pytest.approx(0.2 * len(items), abs=1.5)
                tested += split.test
            assert sorted(tested) == sorted(item.item_id for item in items)
