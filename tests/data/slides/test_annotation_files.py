import json

import numpy as np
import pytest

from src.data.slides.annotation_files import (
    find_annotation,
    read_boxes,
    read_camelyon_json,
    read_geojson,
    read_polygons,
    write_geojson,
)
from src.data.slides.patch_labels import label_patches
from src.data.slides.patch_map import patch_features
from src.data.slides.regions import PolygonRegions

RING = [[0, 0], [100, 0], [100, 100], [0, 100], [0, 0]]
HOLE = [[20, 20], [40, 20], [40, 40], [20, 40], [20, 20]]


def feature(geometry, name="Tumor"):
    return {"type": "Feature", "geometry": geometry, "properties": {"classification": {"name": name}}}


def test_geojson_of_qupath_with_holes_and_several_parts(tmp_path, caplog):
    path = tmp_path / "s.geojson"
    features = [
        feature({"type": "Polygon", "coordinates": [RING, HOLE]}),
        feature({"type": "MultiPolygon", "coordinates": [[RING], [HOLE]]}, "Exclusion"),
        feature({"type": "Point", "coordinates": [3, 4]}),
    ]
    for content in ({"type": "FeatureCollection", "features": features}, features):
        path.write_text(json.dumps(content))
        first, second, third = read_geojson(path)
        assert first.points.tolist() == RING[:-1]
        assert [hole.tolist() for hole in first.holes] == [HOLE[:-1]]
        assert (first.is_exclusion, second.is_exclusion, third.is_exclusion) == (False, True, True)
    assert "it has 0 points" in caplog.text
    path.write_text(json.dumps(features[0]))
    assert len(read_geojson(path)) == 1


@pytest.mark.parametrize("text", ["{", '{"type": "FeatureCollection", "features": [{"type": "Feature"}]}', "[3]"])
def test_what_is_no_geojson_is_named(tmp_path, text):
    (tmp_path / "s.geojson").write_text(text)
    with pytest.raises(ValueError, match=r"Expected (json|GeoJSON).* in .*s.geojson"):
        read_geojson(tmp_path / "s.geojson")


def test_camelyon_json_cuts_out_what_is_negative(tmp_path):
    path = tmp_path / "s.json"
    regions = {"positive": [{"name": "a", "vertices": RING[:-1]}], "negative": [{"name": "b", "vertices": HOLE[:-1]}]}
    path.write_text(json.dumps(regions))
    for polygons in (read_camelyon_json(path), read_polygons(path, "s")):
        inside = PolygonRegions(polygons).contains(np.array([[10, 10], [30, 30]]))
        assert inside.tolist() == [True, False]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": []}))
    assert read_polygons(path, "s") == []  # known by its content


@pytest.mark.realdata
def test_a_real_outline_of_camelyon16(data_dir):
    polygons = read_camelyon_json(data_dir / "tables/camelyon16_Tumor_100.json")
    regions = PolygonRegions(polygons)
    low, high = regions.bounds
    assert (high > low).all()
    corners = np.stack(
        np.meshgrid(*(np.arange(a - 512, b + 512, 512) for a, b in zip(low, high, strict=True))), axis=-1
    )
    coords = corners.reshape(-1, 2)
    covered = regions.coverage(coords, 512)
    assert 0 < (covered > 0.5).sum() < len(coords)

    # The areas by patches and by the shoelace formula agree.
    def area(ring):
        return 0.5 * abs(np.sum(ring[:, 0] * np.roll(ring[:, 1], -1) - ring[:, 1] * np.roll(ring[:, 0], -1)))

    expected = sum(area(one.points) * (-1 if one.is_exclusion else 1) for one in polygons)
    assert covered.sum() * 512**2 == pytest.approx(expected, rel=0.03)
    assert label_patches(coords, 512, regions, "center").sum() == pytest.approx((covered > 0.5).sum(), rel=0.1)


def test_boxes_of_one_csv_for_all_slides(tmp_path):
    (tmp_path / "boxes.csv").write_text("slide_id,xmin,ymin,xmax,ymax\n01,0,0,100,50\n02,5,5,6,6\n")
    (polygon,) = read_boxes(tmp_path / "boxes.csv", "01")
    assert polygon.points.max(axis=0).tolist() == [100, 50]
    assert find_annotation(tmp_path, "01") == tmp_path / "boxes.csv"
    assert find_annotation(tmp_path, "03") is None
    (tmp_path / "boxes.csv").write_text("slide_id,xmin,ymin,xmax\n01,0,0,100\n")
    with pytest.raises(ValueError, match=r"Expected columns .*add \['ymax'\]"):
        read_boxes(tmp_path / "boxes.csv", "01")


def test_a_slides_own_file_comes_before_boxes(tmp_path):
    (tmp_path / "boxes.csv").write_text("slide_id,xmin,ymin,xmax,ymax\n01,0,0,100,50\n")
    (tmp_path / "01_mask.tiff").touch()
    assert find_annotation(tmp_path, "01") == tmp_path / "01_mask.tiff"
    (tmp_path / "01.geojson").touch()
    assert find_annotation(tmp_path, "01") == tmp_path / "01.geojson"
    (tmp_path / "01.xml").touch()
    assert find_annotation(tmp_path, "01") == tmp_path / "01.xml"


def test_maps_are_squares_that_can_be_read_again(tmp_path):
    features = patch_features(np.array([[0, 0], [64, 128]]), 64, np.array([0.5, 2.0]), "neuron 7")
    write_geojson(tmp_path / "map.geojson", features)
    first, second = read_geojson(tmp_path / "map.geojson")
    assert first.points.tolist() == [[0, 0], [64, 0], [64, 64], [0, 64]]
    assert second.points.min(axis=0).tolist() == [64, 128]
    written = json.loads((tmp_path / "map.geojson").read_text())["features"]
    assert [one["properties"]["measurements"]["neuron 7"] for one in written] == [0.5, 2.0]
    assert written[0]["properties"]["objectType"] == "detection"
