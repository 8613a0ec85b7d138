import io

import pandas as pd
import pytest

from src.data.slides.listings import list_camelyon16, list_panda


def write_empty(folder, names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def as_csv(listing):
    return pd.DataFrame(dict(listing.columns)).to_csv(index=False).encode()


def published(data_dir, name):
    return (data_dir / "tables" / "sae1n" / f"{name}_metadata.csv").read_bytes()


@pytest.mark.realdata
def test_published_csv_of_camelyon16_comes_out_byte_for_byte(data_dir, tmp_path):
    expected = published(data_dir, "camelyon16")
    table = pd.read_csv(io.BytesIO(expected), dtype=str)
    outlined = table.slide_id[(table.split == "test") & (table.label == "tumor")]
    features = write_empty(tmp_path / "features" / "h5_files", table.slide_id.sample(frac=1, random_state=0) + ".h5")
    annotations = write_empty(tmp_path / "annotations", outlined + ".xml")
    assert as_csv(list_camelyon16(features.parent, annotations)) == expected


@pytest.mark.realdata
def test_published_csv_of_panda_comes_out_byte_for_byte(data_dir, tmp_path):
    expected = published(data_dir, "panda")
    table = pd.read_csv(io.BytesIO(expected), dtype=str)
    features = write_empty(tmp_path / "h5_files", table.slide_id + ".h5")
    train = pd.DataFrame({"image_id": table.slide_id, "data_provider": table.data_provider})
    train["isup_grade"] = (table.label == "tumor").astype(int)
    train["gleason_score"] = "0+0"
    train.loc[len(train)] = ["0" * 32, "radboud", 5, "5+5"]
    train.sample(frac=1, random_state=0).to_csv(tmp_path / "train.csv", index=False)
    assert as_csv(list_panda(tmp_path / "train.csv", features.parent)) == expected


SLIDES = ["normal_001.h5", "tumor_001.h5", "test_001.h5", "test_002.h5"]


def test_test_slides_hold_tumour_where_they_are_outlined(tmp_path):
    write_empty(tmp_path / "f", SLIDES)
    write_empty(tmp_path / "a" / "testing", ["Test_002.xml"])
    columns = list_camelyon16(tmp_path / "f", tmp_path / "a").columns
    assert columns == {
        "case_id": ["normal_001", "test_001", "test_002", "tumor_001"],
        "slide_id": ["normal_001", "test_001", "test_002", "tumor_001"],
        "label": ["normal", "normal", "tumor", "tumor"],
        "split": ["train", "test", "test", "train"],
    }


@pytest.mark.parametrize("outlines", [None, [], ["tumor_001.xml"]])
def test_test_slides_are_not_normal_for_want_of_outlines(tmp_path, outlines):
    write_empty(tmp_path / "f", SLIDES)
    if outlines is not None:
        write_empty(tmp_path / "a", outlines)
    with pytest.raises(FileNotFoundError, match=r"outlines of test slides .*annotations_dir"):
        list_camelyon16(tmp_path / "f", tmp_path / "a")
    with pytest.raises(FileNotFoundError, match="outlines of test slides"):
        list_camelyon16(tmp_path / "f", None)


def test_train_slides_need_no_outlines(tmp_path):
    write_empty(tmp_path / "f", SLIDES[:2])
    assert list_camelyon16(tmp_path / "f", None).columns["label"] == ["normal", "tumor"]


def test_patches_stand_in_while_there_are_no_features(tmp_path):
    write_empty(tmp_path / "cut" / "patches", SLIDES[:1])
    assert list_camelyon16(tmp_path / "f", None, tmp_path / "cut").columns["slide_id"] == ["normal_001"]
    with pytest.raises(FileNotFoundError, match=r"h5_files.*task=tile"):
        list_camelyon16(tmp_path / "f", None, tmp_path / "other")


def test_slide_of_another_data_set_is_named(tmp_path):
    write_empty(tmp_path / "f", [*SLIDES, "patient_004_node_1.h5"])
    with pytest.raises(ValueError, match=r"got 'patient_004_node_1'"):
        list_camelyon16(tmp_path / "f", None)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("image_id,isup_grade\na,0\n", r"without data_provider"),
        ("image_id,data_provider,isup_grade\na,x,0\na,x,1\n", r"got 'a' twice"),
        ("image_id,data_provider,isup_grade\na,x,negative\n", r"isup_grade .* got 'negative'"),
        ("image_id,data_provider,isup_grade\nb,x,0\n", r"got none for 'a'"),
    ],
)
def test_wrong_train_csv_of_panda_is_told(tmp_path, lines, message):
    write_empty(tmp_path / "f", ["a.h5"])
    (tmp_path / "train.csv").write_text(lines)
    with pytest.raises(ValueError, match=message):
        list_panda(tmp_path / "train.csv", tmp_path / "f")


def test_missing_train_csv_of_panda_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"train\.csv of PANDA at"):
        list_panda(tmp_path / "train.csv", tmp_path)
