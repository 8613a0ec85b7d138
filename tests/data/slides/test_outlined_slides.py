import numpy as np
import pytest

from src.data.slides.patch_labels import OutlinedSlides
from src.records import Item

XML = """<ASAP_Annotations><Annotations><Annotation Name="a" Type="Polygon" PartOfGroup="Tumor" Color="#F4FA58">
<Coordinates><Coordinate Order="0" X="0" Y="0"/><Coordinate Order="1" X="100" Y="0"/>
<Coordinate Order="2" X="100" Y="100"/><Coordinate Order="3" X="0" Y="100"/></Coordinates></Annotation></Annotations>
<AnnotationGroups><Group Name="Tumor" PartOfGroup="None" Color="#00ff00"><Attributes/></Group></AnnotationGroups>
</ASAP_Annotations>"""


@pytest.fixture
def truth(tmp_path):
    (tmp_path / "t1.xml").write_text(XML)
    return OutlinedSlides(tmp_path, "tumor", "center", exclude=["t3"])


def test_patches_inside_are_positive(truth):
    coords = np.array([[0, 0], [60, 60], [200, 0]])
    assert truth.label("t1", coords, 50).tolist() == [True, True, False]


def test_slides_of_other_classes_need_no_file_and_are_negative(truth):
    assert truth.why_unknown(Item("n1", "c", "normal")) is None
    assert truth.label("n1", np.array([[0, 0], [60, 60]]), 50).tolist() == [False, False]


def test_positive_slide_without_outline_is_unknown_not_negative(truth):
    assert truth.why_unknown(Item("t1", "c", "tumor")) is None
    assert "unlabelled and has no outline" in truth.why_unknown(Item("t2", "c", None))
    reason = truth.why_unknown(Item("t2", "c", "tumor"))
    assert reason is not None
    assert "has no outline" in reason
    assert "t2.xml" in reason


def test_slides_known_to_be_incomplete_are_unknown(truth):
    assert truth.why_unknown(Item("t3", "c", "normal")) == ("its outlines are incomplete (localization.exclude_slides)")


def test_exclusions_alone_outline_nothing(truth, tmp_path):
    (tmp_path / "t4.xml").write_text(XML.replace('PartOfGroup="Tumor" Color="#F4', 'PartOfGroup="_2" Color="#F4'))
    assert truth.why_unknown(Item("t4", "c", "tumor")) is not None
