import pytest
from PIL import Image

from src.data.images.table import list_table

COLUMNS = {"id": "image", "path": "file", "case": "patient", "split": "fold", "mask": None}
ROWS = ["1,a.png,p1,train,0", "2,b.png,p1,train,1", "3,sub/c.png,p2,TEST,", "4,d.png,p3,,1"]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("a", "b", "sub/c", "d"):
        Image.new("RGB", (2, 2)).save(tmp_path / f"{name}.png")
    return tmp_path


def listed(folder, rows=ROWS, header="image,file,patient,fold,dx", columns=COLUMNS, **options):
    (folder / "images.csv").write_text("\n".join([header, *rows]) + "\n")
    return list_table(folder / "images.csv", folder, columns, **options)


def test_columns_of_any_names_are_taken_over(folder):
    listing = listed(folder, labels={"label": "dx", "site": "patient"})
    assert listing.columns == {
        "case_id": ["p1", "p1", "p2", "p3"],
        "image_id": ["1", "2", "3", "4"],
        "label": ["0", "1", "", "1"],
        "site": ["p1", "p1", "p2", "p3"],
        "path": ["a.png", "b.png", "sub/c.png", "d.png"],
    }
    assert listing.parts == {"train": ["1", "2"], "test": ["3"]}
    assert listing.boxes is None


def test_whole_numbers_become_classes_and_counts_presence(folder):
    columns = listed(folder, labels={"label": "dx"}, present={"seen": "dx"}, classes=["no", "yes"]).columns
    assert columns["label"] == ["no", "yes", "", "yes"]
    assert columns["seen"] == ["absent", "present", "", "present"]


def test_a_csv_may_have_paths_alone(folder):
    listing = listed(folder, columns={"path": "file"})
    assert listing.columns["image_id"] == listing.columns["case_id"] == ["a", "b", "sub__c", "d"]
    assert listing.columns["label"] == [""] * 4
    assert listing.parts is None


def test_images_are_found_by_their_names(folder):
    listing = listed(folder, ["a,0", "c.png,1"], "image,dx", {"id": "image"}, labels={"label": "dx"})
    assert listing.columns["path"] == ["a.png", "sub/c.png"]
    with pytest.raises(FileNotFoundError, match=r"called 'z' below .*entry 2\), found none.*listing\.pattern"):
        listed(folder, ["a", "z"], "image", {"id": "image"})
    (folder / "sub" / "a.png").write_bytes((folder / "a.png").read_bytes())
    with pytest.raises(FileNotFoundError, match=r"found 'a\.png', 'sub/a\.png'"):
        listed(folder, ["a"], "image", {"id": "image"})


def test_masks_belong_to_images(folder):
    columns = {"id": "image", "path": "file", "mask": "mask"}
    listing = listed(folder, ["1,a.png,b.png", "2,d.png,"], "image,file,mask", columns)
    assert listing.columns["mask_path"] == ["b.png", ""]


BOXES = {
    "csv": "boxes.csv",
    "id": "image",
    "label": "cell",
    "xmin": "left",
    "ymin": "top",
    "xmax": "right",
    "ymax": "low",
}


def boxed(folder, *rows, header="image,left,top,right,low,cell"):
    (folder / "boxes.csv").write_text("\n".join([header, *rows]) + "\n")
    return listed(folder, boxes=BOXES | {"csv": str(folder / "boxes.csv")})


def test_boxes_belong_to_images(folder):
    assert boxed(folder, "2,0,1,2.5,3,red", "2,0,0,1,1,white").boxes == {
        "item_id": ["2", "2"],
        "xmin": [0, 0],
        "ymin": [1, 0],
        "xmax": [2.5, 1],
        "ymax": [3, 1],
        "label": ["red", "white"],
    }


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("9,0,0,1,1,red", "some of '9'"),
        ("2,0,0,wide,1,red", "numbers in column right .*'wide'"),
        ("2,0,0,nan,1,red", "numbers in column right"),
        ("2,5,0,1,1,red", "xmin < xmax .* in line 2"),
    ],
)
def test_wrong_boxes_are_refused(folder, row, said):
    with pytest.raises(ValueError, match=said):
        boxed(folder, row)


def test_boxes_without_a_column_are_refused(folder):
    with pytest.raises(ValueError, match=r"\['low'\] are missing.*boxes\.<what>"):
        boxed(folder, "2,0,1,2,red", header="image,left,top,right,cell")


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (["1,a.png,p,train,0", "1,b.png,p,train,0"], "'1' more than once"),
        (["1,../a.png,p,train,0"], r"below dataset\.dir in .*images\.csv, line 2"),
        (["1,,p,train,0"], r"below dataset\.dir in .*images\.csv, line 2"),
        (["1,a.png,p,holdout,0"], "train, val or test in column fold .*'holdout'"),
        (["1,a.png,p,train,7"], "whole numbers from 0 to 1 in column dx .*'7'"),
        (["1,a.png,p,train,many"], "'many'"),
    ],
)
def test_a_wrong_csv_is_refused(folder, rows, said):
    with pytest.raises(ValueError, match=said):
        listed(folder, rows, labels={"label": "dx"}, classes=["no", "yes"])


def test_a_missing_column_is_named_with_the_key(folder):
    with pytest.raises(ValueError, match=r"\['patient'\] are missing.*dataset\.listing\.columns\.<what>=<column>"):
        listed(folder, ["1,a.png,train,0"], "image,file,fold,dx")


def test_a_missing_image_or_csv_is_named(folder):
    with pytest.raises(FileNotFoundError, match=r"z\.png, as .*images\.csv, line 3 says"):
        listed(folder, [ROWS[0], "2,z.png,p1,train,0"])
    with pytest.raises(FileNotFoundError, match=r"dataset\.listing\.csv=<csv>"):
        list_table(folder / "none.csv", folder, COLUMNS)


def test_a_count_that_is_no_number_is_refused(folder):
    with pytest.raises(ValueError, match=r"numbers in column patient .*'p1'"):
        listed(folder, present={"seen": "patient"})


@pytest.mark.realdata
def test_bccd_is_listed_with_its_boxes(data_dir):
    folder = data_dir / "images"
    listing = list_table(
        folder / "bccd_images.csv",
        folder,
        {"id": "image_id", "path": "path", "split": "split"},
        present={"platelets": "n_platelets"},
        boxes={"csv": str(folder / "bccd_boxes.csv")},
    )
    assert listing.columns["platelets"].count("present") == 201
    assert {part: len(ids) for part, ids in listing.parts.items()} == {"train": 205, "val": 87, "test": 72}
    assert listing.boxes["label"].count("WBC") == 372
