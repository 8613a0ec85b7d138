import json
import re

import numpy as np
import pytest
import torch

from src.data.readers.h5_files import FeatureFileError
from src.data.readers.tensor_folder import TensorFolder
from src.split_files import FoldSplit, check_split
from tests.data.readers.opened import look, read

RNG = np.random.default_rng(0)
ROWS = RNG.standard_normal((5, 3)).astype(np.float32)
TOKENS = RNG.standard_normal((4, 2, 3)).astype(np.float16)


def _save(path, array):
    if path.suffix == ".npy":
        np.save(path, array)
    else:
        torch.save(torch.from_numpy(array), path)
    return path


@pytest.mark.parametrize("suffix", [".npy", ".pt"])
def test_images_are_rows_or_blocks_of_tokens(tmp_path, suffix):
    files = {"train": _save(tmp_path / f"a{suffix}", TOKENS), "val": _save(tmp_path / f"b{suffix}", TOKENS[:1])}
    folder = TensorFolder(files)
    assert folder.parts == {"train": [f"train_{i:07d}" for i in range(4)], "val": ["val_0000000"]}
    assert folder.d_in == 3
    bag = look(folder, "train_0000002")
    assert (bag.n_rows, bag.d_in, bag.dtype) == (2, 3, np.float16)
    np.testing.assert_array_equal(read(folder, "train_0000002"), TOKENS[2].astype(np.float32))
    assert bag.coords is None
    rows = TensorFolder({"all": _save(tmp_path / f"c{suffix}", ROWS)})
    np.testing.assert_array_equal(read(rows, "all_0000004"), ROWS[4:])


def test_reading_does_not_change_the_file(tmp_path):
    path = _save(tmp_path / "a.npy", ROWS)
    before = path.read_bytes()
    read(TensorFolder({"all": path}), "all_0000000")[:] = 0
    assert path.read_bytes() == before


def test_bfloat16_becomes_float32(tmp_path):
    torch.save(torch.from_numpy(ROWS).bfloat16(), tmp_path / "a.pt")
    features = read(TensorFolder({"all": tmp_path / "a.pt"}), "all_0000001")
    np.testing.assert_array_equal(features, torch.from_numpy(ROWS[1:2]).bfloat16().float().numpy())


@pytest.mark.parametrize("suffix", [".npy", ".pt", ".json", ".txt", ".csv"])
def test_labels_and_ids_stay_strings(tmp_path, suffix):
    entries = ["007", "08", "9", "10", "11"]
    path = tmp_path / f"entries{suffix}"
    if suffix == ".npy":
        np.save(path, np.array(entries))
    elif suffix == ".pt":
        torch.save(entries, path)
    elif suffix == ".json":
        path.write_text(json.dumps(entries))
    else:
        path.write_text(("label\n" if suffix == ".csv" else "") + "\n".join(entries) + "\n")
    folder = TensorFolder({"all": _save(tmp_path / "x.npy", ROWS)}, {"all": path}, {"all": path})
    assert folder.item_ids == sorted(entries)
    assert [slide.label for slide in folder.items] == entries


def test_paths_become_ids_that_can_name_files(tmp_path):
    (tmp_path / "paths.txt").write_text("n01/a.jpg\nn02/a.jpg\n/data/b.png\nv1.2\n0.5.tif\n")
    folder = TensorFolder({"all": _save(tmp_path / "x.npy", ROWS)}, {"all": tmp_path / "paths.txt"})
    assert [item.item_id for item in folder.items] == ["n01__a", "n02__a", "data__b", "v1.2", "0.5"]


def test_without_labels_images_are_unlabelled(tmp_path):
    folder = TensorFolder({"all": _save(tmp_path / "x.npy", ROWS)})
    assert {slide.label for slide in folder.items} == {None}


def test_cases_make_images_of_one_patient_in_two_parts_an_error(tmp_path):
    files = {part: _save(tmp_path / f"{part}.npy", ROWS[:2]) for part in ("train", "test")}
    cases = {part: tmp_path / f"{part}_cases.txt" for part in files}
    cases["train"].write_text("p1\np2\n")
    cases["test"].write_text("p2\np3\n")
    folder = TensorFolder(files, cases=cases)
    assert [item.case_id for item in folder.items] == ["p1", "p2", "p2", "p3"]
    split = FoldSplit(0, tuple(folder.parts["train"]), (), tuple(folder.parts["test"]))
    with pytest.raises(ValueError, match="got case 'p2' in train and test"):
        check_split(split, folder.items)
    alone = TensorFolder(files)
    assert [item.case_id for item in alone.items] == [item.item_id for item in alone.items]
    check_split(split, alone.items)
    with pytest.raises(ValueError, match="tensor_cases to name a file for each of"):
        TensorFolder(files, cases={"train": cases["train"]})


def test_bad_files_are_named(tmp_path):
    good = _save(tmp_path / "x.npy", ROWS)
    with pytest.raises(FileNotFoundError, match=r"gone\.npy"):
        TensorFolder({"train": tmp_path / "gone.npy"})
    (tmp_path / "cut.npy").write_bytes(good.read_bytes()[:-7])
    with pytest.raises(FeatureFileError, match=r"Expected a whole \.npy file at .*cut\.npy"):
        TensorFolder({"train": tmp_path / "cut.npy"})
    (tmp_path / "zero.npy").write_bytes(b"")
    with pytest.raises(FeatureFileError, match=r"zero\.npy"):
        TensorFolder({"train": tmp_path / "zero.npy"})
    (tmp_path / "cut.pt").write_bytes(b"PK")
    with pytest.raises(FeatureFileError, match=r"Expected a readable \.pt file at .*cut\.pt"):
        TensorFolder({"train": tmp_path / "cut.pt"})
    torch.save({"a": torch.zeros(2)}, tmp_path / "dict.pt")
    with pytest.raises(FeatureFileError, match=r"Expected one dense tensor in .*dict\.pt, got dict"):
        TensorFolder({"train": tmp_path / "dict.pt"})
    with pytest.raises(FeatureFileError, match=re.escape("got (5,)")):
        TensorFolder({"train": _save(tmp_path / "flat.npy", ROWS[:, 0])})
    with pytest.raises(FeatureFileError, match="Expected floating point"):
        TensorFolder({"train": _save(tmp_path / "int.npy", np.zeros((2, 3), dtype=np.int64))})
    with pytest.raises(ValueError, match="Expected one width"):
        TensorFolder({"train": good, "val": _save(tmp_path / "wide.npy", np.zeros((2, 4), dtype=np.float32))})
    with pytest.raises(ValueError, match=r"Expected dataset\.tensors to name files"):
        TensorFolder({"train": None})
    with pytest.raises(ValueError, match="or one for all"):
        TensorFolder({"train": good, "all": good})


def test_entries_that_do_not_fit_are_named(tmp_path):
    good = _save(tmp_path / "x.npy", ROWS)
    (tmp_path / "few.txt").write_text("a\nb\n")
    with pytest.raises(ValueError, match=r"Expected labels of 5 images in .*few\.txt, one each, got 2"):
        TensorFolder({"all": good}, labels={"all": tmp_path / "few.txt"})
    (tmp_path / "twice.txt").write_text("a.jpg\na.png\nb\nc\nd\n")
    with pytest.raises(ValueError, match=r"twice\.txt, got 'a.jpg' and 'a.png'"):
        TensorFolder({"all": good}, {"all": tmp_path / "twice.txt"})
    (tmp_path / "ids.txt").write_text("a\nb\nc\nd\ne\n")
    with pytest.raises(ValueError, match="Expected images in one part each"):
        TensorFolder({"train": good, "val": good}, {"train": tmp_path / "ids.txt", "val": tmp_path / "ids.txt"})


def test_a_value_that_is_not_finite_names_the_image(tmp_path):
    rows = ROWS.copy()
    rows[3, 1] = np.nan
    folder = TensorFolder({"all": _save(tmp_path / "x.npy", rows)})
    with pytest.raises(FeatureFileError, match=r"image 'all_0000003' \(entry 3 of .*x\.npy"):
        read(folder, "all_0000003")


@pytest.mark.parametrize("suffix", [".txt", ".csv", ".json", ".npy"])
def test_blanks_around_ids_and_labels_are_listed(tmp_path, suffix):
    entries = ["a", "b", "a\u00a0", "c ", "d"]
    path = tmp_path / f"entries{suffix}"
    if suffix == ".npy":
        np.save(path, np.array(entries))
    else:
        path.write_text(json.dumps(entries) if suffix == ".json" else "\n".join(entries) + "\n")
    good = _save(tmp_path / "x.npy", ROWS)
    for what in ("ids", "labels"):
        with pytest.raises(ValueError, match=rf"{what} without blanks .*entries\{suffix}, got 'a\\xa0', 'c ': correct"):
            TensorFolder({"all": good}, **{what: {"all": path}})


def test_byte_order_mark_is_no_part_of_the_first_id(tmp_path):
    (tmp_path / "ids.txt").write_text("a\nb\nc\nd\ne\n", encoding="utf-8-sig")
    folder = TensorFolder({"all": _save(tmp_path / "x.npy", ROWS)}, {"all": tmp_path / "ids.txt"})
    assert [item.item_id for item in folder.items] == ["a", "b", "c", "d", "e"]


def test_ids_in_utf16_are_named(tmp_path):
    (tmp_path / "ids.csv").write_text("a\nb\nc\nd\ne\n", encoding="utf-16")
    with pytest.raises(ValueError, match=r"Expected text in UTF-8 in .*ids\.csv, got UTF-16"):
        TensorFolder({"all": _save(tmp_path / "x.npy", ROWS)}, {"all": tmp_path / "ids.csv"})
