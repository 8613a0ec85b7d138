import pytest

from src.data.class_labels import class_half, name_labels
from src.data.listing import list_dataset

LABELS = ["c", "a", "", "b", "a"]


def test_the_base_half_is_rounded_up_and_the_novel_half_is_the_rest():
    assert class_half(LABELS, "base") == [False, True, False, True, True]
    assert class_half(LABELS, "novel") == [True, False, False, False, False]


def test_one_class_has_no_halves():
    with pytest.raises(ValueError, match=r"two classes .* base half of, got \['a'\]"):
        class_half(["a", "", "a"], "base")


def test_names_come_from_a_mapping_or_a_file(tmp_path):
    names = {"a": "apple", "b": "a kind of pear", "c": "apple"}
    expected = ["apple (c)", "apple (a)", "", "a kind of pear", "apple (a)"]
    assert name_labels(LABELS, names) == expected
    path = tmp_path / "classnames.txt"
    path.write_text("\n".join(f"{label} {name}" for label, name in names.items()) + "\n")
    assert name_labels(LABELS, path) == expected


def test_wrong_names_are_refused(tmp_path):
    with pytest.raises(ValueError, match="none for 'c'"):
        name_labels(LABELS, {"a": "apple", "b": "pear"})
    with pytest.raises(FileNotFoundError, match=r"names\.txt"):
        name_labels(LABELS, tmp_path / "names.txt")
    (tmp_path / "names.txt").write_text("a apple\nb\n")
    with pytest.raises(ValueError, match=r"names\.txt, got 'b'"):
        name_labels(LABELS, tmp_path / "names.txt")


def test_a_half_takes_its_parts_and_boxes_along(tmp_path):
    for part, names in {"train": ("cat/1", "dog/2"), "test": ("cat/3", "dog/4")}.items():
        for name in names:
            path = tmp_path / part / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    listing = {"_target_": "src.data.images.image_folder.list_image_folder", "folder": str(tmp_path)}
    found = list_dataset(Dataset(listing=listing, target="label", class_half="novel"))
    assert found.columns["image_id"] == ["test__dog__4", "train__dog__2"]
    assert found.parts == {"train": ["train__dog__2"], "test": ["test__dog__4"]}


class Dataset(dict):
    """A configuration, as far as it is read here."""

    __getattr__ = dict.__getitem__
