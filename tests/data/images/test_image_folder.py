import pytest
from PIL import Image

from src.data.images.image_folder import find_images, list_image_folder


def fill(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2)).save(path, format="PNG")
    return folder


def test_a_flat_folder_has_ids_from_names_and_no_labels(tmp_path):
    listing = list_image_folder(fill(tmp_path, "007.png", "b.v2.jpg"))
    assert listing.columns == {
        "case_id": ["007", "b.v2"],
        "image_id": ["007", "b.v2"],
        "label": ["", ""],
        "path": ["007.png", "b.v2.jpg"],
    }
    assert listing.parts is None


def test_class_folders_are_labels_whatever_lies_below(tmp_path):
    columns = list_image_folder(fill(tmp_path, "dog/1.png", "cat/1.png", "cat/old/2.png")).columns
    assert columns["image_id"] == ["cat__1", "cat__old__2", "dog__1"]
    assert columns["label"] == ["cat", "cat", "dog"]
    assert columns["path"] == ["cat/1.png", "cat/old/2.png", "dog/1.png"]


@pytest.mark.parametrize("below", ["{}/", ""])
def test_folders_called_like_parts_are_parts(tmp_path, below):
    names = [
        f"{part}/{below.format(label)}{i}.png"
        for i, part in enumerate(("train", "Validation", "test"))
        for label in "ab"
    ]
    listing = list_image_folder(fill(tmp_path, *names))
    assert listing.parts is not None
    assert {part: len(ids) for part, ids in listing.parts.items()} == dict.fromkeys(listing.parts, 2 if below else 1)
    assert set(listing.parts) == {"train", "val", "test"}
    assert set(listing.columns["label"]) == ({"a", "b"} if below else {""})


def test_a_class_beside_parts_makes_all_of_them_classes(tmp_path):
    listing = list_image_folder(fill(tmp_path, "train/1.png", "bus/2.png"))
    assert listing.parts is None
    assert listing.columns["label"] == ["bus", "train"]


def test_folders_need_not_be_classes(tmp_path):
    fill(tmp_path, "p1/1.png", "p1/2.png", "p2/1.png")
    columns = list_image_folder(tmp_path, case_pattern="^(p[0-9]+)__", has_classes=False).columns
    assert columns["case_id"] == ["p1", "p1", "p2"]
    assert columns["label"] == ["", "", ""]


def test_images_beside_class_folders_are_asked_about(tmp_path):
    fill(tmp_path, "1.png", "cat/2.png")
    with pytest.raises(ValueError, match=r"got '1\.png' beside such folders.*has_classes"):
        list_image_folder(tmp_path)
    assert list_image_folder(tmp_path, has_classes=True).columns["label"] == ["", "cat"]


def test_hidden_names_are_left_out_and_what_is_no_image_is_logged(tmp_path, caplog):
    caplog.set_level("INFO")
    fill(tmp_path, "a.png", ".hidden.png", ".git/b.png", "notes.txt")
    assert find_images(tmp_path) == ["a.png"]
    assert "Left out 1 files" in caplog.text
    assert "'notes.txt'" in caplog.text


def test_a_pattern_takes_some(tmp_path):
    fill(tmp_path, "cat/image_1.png", "cat/mask_1.png", "dog/image_2.png")
    assert find_images(tmp_path, "*/image_*") == ["cat/image_1.png", "dog/image_2.png"]


@pytest.mark.parametrize("names", [("a.png", "a.jpg"), ("a__b.png", "a/b.png")])
def test_images_that_would_share_an_id_are_named(tmp_path, names):
    fill(tmp_path, *names)
    with pytest.raises(ValueError, match="Expected ids that differ in"):
        list_image_folder(tmp_path, has_classes=False)


def test_links_out_of_the_folder_are_refused(tmp_path):
    fill(tmp_path, "in/a.png", "elsewhere/b.png")
    (tmp_path / "in" / "link.png").symlink_to(tmp_path / "elsewhere" / "b.png")
    with pytest.raises(ValueError, match=r"link\.png, a link to"):
        find_images(tmp_path / "in")
    (tmp_path / "in" / "link.png").unlink()
    (tmp_path / "in" / "folder").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="folder, a link to a folder"):
        find_images(tmp_path / "in")


@pytest.mark.parametrize(("pattern", "said"), [("(", "regular expression"), ("^x", r"nothing in 'a'")])
def test_a_case_pattern_that_finds_no_case_is_refused(tmp_path, pattern, said):
    with pytest.raises(ValueError, match=said):
        list_image_folder(fill(tmp_path, "a.png"), case_pattern=pattern)


def test_an_empty_or_missing_folder_is_told(tmp_path):
    (tmp_path / "a.txt").touch()
    with pytest.raises(FileNotFoundError, match=r"Expected images .*found none, but 'a\.txt'"):
        list_image_folder(tmp_path)
    for folder in (tmp_path / "none", None):
        with pytest.raises(FileNotFoundError, match=r"dataset\.dir=<folder>"):
            list_image_folder(folder)
