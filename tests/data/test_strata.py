import pytest

from src.data.strata import read_strata, strata_input


@pytest.fixture
def csv(tmp_path):
    path = tmp_path / "dataset.csv"
    path.write_text("case_id,slide_id,label,center,scanner\na,01,tumor,x,1\nb,02,normal,y,1\nc,03,normal,,2\n")
    return path


def test_columns_are_joined_in_the_order_of_the_items(csv):
    assert read_strata(csv, ["center"], ["02", "01"]) == ("y", "x")
    assert read_strata(csv, ["center", "scanner"], ["01", "02"]) == ("x, 1", "y, 1")


def test_what_is_missing_is_named(csv):
    with pytest.raises(ValueError, match=r"columns \['site'\] of selection.adjust_for in .*dataset.csv"):
        read_strata(csv, ["site"], ["01"])
    with pytest.raises(ValueError, match=r"every item to have a value in \['center'\].*got none for .*03"):
        read_strata(csv, ["center"], ["01", "03"])


def test_the_record_changes_with_values_and_columns_only(csv):
    before = strata_input("strata train", csv, ["center"], ["01", "02"]).digest
    assert strata_input("strata train", csv, ["scanner"], ["01", "02"]).digest != before
    csv.write_text(csv.read_text().replace("c,03,normal", "c,03,tumor"))
    assert strata_input("strata train", csv, ["center"], ["01", "02"]).digest == before
    csv.write_text(csv.read_text().replace("normal,y", "normal,z"))
    assert strata_input("strata train", csv, ["center"], ["01", "02"]).digest != before
