import numpy as np
import pytest

from src.data.slides.annotations import Polygon, read_asap_xml, write_asap_xml

SQUARE = np.array([[0.0, 0.0], [10.0, 0.0], [10.0, 10.0], [0.0, 10.0]])


def test_outlines_survive_the_file(tmp_path):
    path = tmp_path / "a.xml"
    write_asap_xml(path, [Polygon(SQUARE, "_0"), Polygon(SQUARE[:3] + 0.25, "_2")])
    first, second = read_asap_xml(path)
    np.testing.assert_array_equal(first.points, SQUARE)
    np.testing.assert_array_equal(second.points, SQUARE[:3] + 0.25)
    assert (first.is_exclusion, second.is_exclusion) == (False, True)


@pytest.mark.parametrize(
    ("group", "excluded"), [("_0", 0), ("_1", 0), ("Tumor", 0), ("_2", 1), ("Exclusion", 1), ("None", 1)]
)
def test_groups_that_cut_out(group, excluded):
    assert Polygon(SQUARE, group).is_exclusion == bool(excluded)


def test_points_follow_their_order_and_stray_clicks_are_named(tmp_path, caplog):
    path = tmp_path / "a.xml"
    path.write_text(
        '<ASAP_Annotations><Annotations><Annotation Name="one" PartOfGroup="Tumor"><Coordinates>'
        '<Coordinate Order="10" X="3" Y="4"/><Coordinate Order="2" X="1" Y="2"/><Coordinate Order="11" X="5" Y="6"/>'
        '</Coordinates></Annotation><Annotation Name="stray"><Coordinates><Coordinate Order="0" X="1" Y="2"/>'
        "</Coordinates></Annotation></Annotations></ASAP_Annotations>"
    )
    (polygon,) = read_asap_xml(path)
    np.testing.assert_array_equal(polygon.points, [[1, 2], [3, 4], [5, 6]])
    assert "'stray'" in caplog.text
    assert "1 points" in caplog.text


def test_bad_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no\.xml"):
        read_asap_xml(tmp_path / "no.xml")
    path = tmp_path / "a.xml"
    path.write_text("<ASAP_Annotations>")
    with pytest.raises(ValueError, match=r"XML in .*a\.xml"):
        read_asap_xml(path)
    path.write_text("<Other/>")
    with pytest.raises(ValueError, match=r"<ASAP_Annotations> in .*got <Other>"):
        read_asap_xml(path)
    path.write_text(
        '<ASAP_Annotations><Annotation Name="one"><Coordinate X="x" Y="1"/></Annotation></ASAP_Annotations>'
    )
    with pytest.raises(ValueError, match=r"'one' of .*a\.xml"):
        read_asap_xml(path)
