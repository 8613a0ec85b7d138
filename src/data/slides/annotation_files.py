"""Outlines in other forms than ASAP's, all in level-0 pixels, and which file holds those of a slide."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from src.csv_tables import read_table
from src.data.slides.annotations import Polygon, bounds_something, read_asap_xml
from src.files import write_atomically
from src.records import id_column

BOXES_FILE = "boxes.csv"
"""One csv for all slides of a folder: slide_id, xmin, ymin, xmax, ymax and, where boxes differ in kind, group."""
MASK_SUFFIXES = ("_mask.tiff", "_mask.tif")
"""Of masks, which `MaskRegions` reads."""
_EDGES = ("xmin", "ymin", "xmax", "ymax")
_CAMELYON_GROUPS = {"positive": "Tumor", "negative": "Exclusion"}


def find_annotation(folder: str | Path, slide_id: str) -> Path | None:
    """Returns the file with a slide's regions, None where it has none.

    `<slide_id>.xml` (ASAP), `<slide_id>.geojson` or `.json` (QuPath's GeoJSON, or polygons as CAMELYON16 has them in
    json), `<slide_id>_mask.tiff` (a mask), or `boxes.csv` when it lists the slide; the first of them counts.
    """
    for suffix in (*_READERS, *MASK_SUFFIXES):
        path = Path(folder) / f"{slide_id}{suffix}"
        if path.is_file():
            return path
    boxes = Path(folder) / BOXES_FILE
    return boxes if boxes.is_file() and read_boxes(boxes, slide_id) else None


def read_polygons(path: Path, slide_id: str) -> list[Polygon]:
    """Reads the outlines of a slide from any file that `find_annotation` finds, a mask aside."""
    if path.name == BOXES_FILE:
        return read_boxes(path, slide_id)
    return _READERS[path.suffix](path)


def read_geojson(path: str | Path) -> list[Polygon]:
    """Reads polygons as QuPath exports them: a FeatureCollection, a list of features, or one feature.

    A polygon's further rings are its holes. Its group is the name of its classification. Points and lines bound
    nothing and are left out, which the log says.

    Raises:
        ValueError: when the file is no GeoJSON.
    """
    return _read_geojson(Path(path), _load(Path(path)))


def read_camelyon_json(path: str | Path) -> list[Polygon]:
    """Reads `{"positive": [{"name", "vertices"}], "negative": [...]}`; what is negative is cut out of the others."""
    return _read_camelyon(Path(path), _load(Path(path)))


def read_boxes(path: str | Path, slide_id: str) -> list[Polygon]:
    """Reads the boxes of a slide from a csv with a line a box; without a column `group` all are regions.

    Raises:
        ValueError: when a column is missing, or an edge is no number.
    """
    table = read_table(path)
    ids = table[id_column(table, path)]
    if missing := [name for name in _EDGES if name not in table]:
        raise ValueError(f"Expected columns {', '.join(_EDGES)} in {path}, got {list(table)}: add {missing}.")
    polygons = []
    for row in (row for row, item_id in enumerate(ids) if item_id == slide_id):
        try:
            left, top, right, bottom = (float(table[name][row]) for name in _EDGES)
        except ValueError as error:
            raise ValueError(f"Expected numbers as edges in line {row + 2} of {path}, got {error}.") from error
        corners = np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
        polygons.append(Polygon(corners, table["group"][row] if "group" in table else "Tumor"))
    return polygons


def write_geojson(path: str | Path, features: Sequence[dict[str, Any]]) -> None:
    """Writes features as a FeatureCollection, which QuPath opens by dropping the file on the slide."""
    with write_atomically(path) as temporary:
        temporary.write_text(json.dumps({"type": "FeatureCollection", "features": list(features)}))


def _read_json(path: Path) -> list[Polygon]:
    content = _load(path)
    is_camelyon = isinstance(content, dict) and not {"type", "features"} & set(content)
    return _read_camelyon(path, content) if is_camelyon else _read_geojson(path, content)


def _read_camelyon(path: Path, content: Any) -> list[Polygon]:
    polygons = []
    try:
        for key, group in _CAMELYON_GROUPS.items():
            for region in content.get(key, []):
                points = np.asarray(region["vertices"], np.float64).reshape(-1, 2)
                if bounds_something(points, str(region.get("name", "?")), path):
                    polygons.append(Polygon(points, group))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"Expected polygons as CAMELYON16 has them in {path}, got {error!r}.") from error
    return polygons


def _read_geojson(path: Path, content: Any) -> list[Polygon]:
    features = content.get("features", [content]) if isinstance(content, dict) else content
    polygons = []
    try:
        for feature in features:
            properties, geometry = feature.get("properties") or {}, feature["geometry"]
            kind = properties.get("classification") or ""
            group = str(kind.get("name", "") if isinstance(kind, dict) else kind)
            parts = geometry["coordinates"] if geometry["type"] == "MultiPolygon" else [geometry["coordinates"]]
            if geometry["type"] not in ("Polygon", "MultiPolygon"):
                parts = [[[]]]
            for rings in parts:
                outer, *holes = (_open_ring(np.asarray(ring, np.float64).reshape(-1, 2)) for ring in rings)
                if bounds_something(outer, str(properties.get("name", group or "?")), path):
                    polygons.append(Polygon(outer, group, tuple(holes)))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"Expected GeoJSON features with polygons in {path}, got {error!r}.") from error
    return polygons


def _open_ring(points: np.ndarray) -> np.ndarray:
    """Drops the last point of a ring where it repeats the first, as GeoJSON asks."""
    return points[:-1] if len(points) > 1 and (points[0] == points[-1]).all() else points


def _load(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"Expected outlines at {path}, found none.")
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"Expected json in {path}, got {error}. Export the annotations again.") from error


_READERS: dict[str, Callable[[Path], list[Polygon]]] = {
    ".xml": read_asap_xml,
    ".geojson": read_geojson,
    ".json": _read_json,
}
