"""Outlines of regions as ASAP writes them, in level-0 pixels."""

import logging
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from src.files import write_atomically

_LOGGER = logging.getLogger(__name__)
# Groups that mark what is not tumour: `_2` is cut out of `_0` and `_1` in CAMELYON16 (its README); later files write
# `Exclusion` and `None` (NCRF, issue 40), CAMELYON17 `normal`.
EXCLUSION_GROUPS = frozenset({"_2", "exclusion", "none", "normal"})
FEWEST_POINTS = 3


@dataclass(frozen=True)
class Polygon:
    """An outlined region.

    Attributes:
        points: vertices (x, y) in level-0 pixels, [n_points, 2] float64, not closed.
        group: ASAP's PartOfGroup, QuPath's classification.
        holes: vertices of what is cut out of this region, and of no other.
    """

    points: np.ndarray
    group: str = "Tumor"
    holes: tuple[np.ndarray, ...] = ()

    @property
    def is_exclusion(self) -> bool:
        """Whether the region is cut out of the others."""
        return self.group.lower() in EXCLUSION_GROUPS


def read_asap_xml(path: str | Path) -> list[Polygon]:
    """Reads the outlines of a slide.

    An annotation of fewer than three points is a stray click: it bounds nothing, is left out, and the log says so.

    Raises:
        FileNotFoundError: when the file does not exist.
        ValueError: when it is not ASAP's XML, or a coordinate is not a number.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"Expected an ASAP annotation file at {path}, found none.")
    try:
        root = ET.parse(path).getroot()
    except ET.ParseError as error:
        raise ValueError(f"Expected XML in {path}, got {error}. Export the annotations again.") from error
    if root.tag != "ASAP_Annotations":
        raise ValueError(f"Expected <ASAP_Annotations> in {path}, got <{root.tag}>.")
    polygons = []
    for annotation in root.iter("Annotation"):
        name = annotation.get("Name", "?")
        coordinates = sorted(annotation.iter("Coordinate"), key=lambda node: float(node.get("Order", "0")))
        try:
            points = np.array([(float(node.attrib["X"]), float(node.attrib["Y"])) for node in coordinates])
        except (KeyError, ValueError) as error:
            raise ValueError(f"Expected numbers X and Y in annotation {name!r} of {path}, got {error}.") from error
        if bounds_something(points, name, path):
            polygons.append(Polygon(points, annotation.get("PartOfGroup", "")))
    return polygons


def bounds_something(points: np.ndarray, name: str, path: Path) -> bool:
    """Whether an outline has the three points that a region needs; where not, the log says that it is left out."""
    if len(points) < FEWEST_POINTS:
        _LOGGER.warning("Left out annotation %r of %s: it has %d points.", name, path, len(points))
    return len(points) >= FEWEST_POINTS


def write_asap_xml(path: str | Path, polygons: Sequence[Polygon]) -> None:
    """Writes outlines so that ASAP, QuPath's importers and `read_asap_xml` read them."""
    root = ET.Element("ASAP_Annotations")
    parent = ET.SubElement(root, "Annotations")
    for index, polygon in enumerate(polygons):
        attributes = {
            "Name": f"Annotation {index}",
            "Type": "Polygon",
            "PartOfGroup": polygon.group,
            "Color": "#F4FA58",
        }
        node = ET.SubElement(ET.SubElement(parent, "Annotation", attributes), "Coordinates")
        for order, (x, y) in enumerate(polygon.points):
            ET.SubElement(node, "Coordinate", {"Order": str(order), "X": f"{x:.2f}", "Y": f"{y:.2f}"})
    groups = ET.SubElement(root, "AnnotationGroups")
    for group in dict.fromkeys(polygon.group for polygon in polygons):
        ET.SubElement(groups, "Group", {"Name": group, "PartOfGroup": "None", "Color": "#64FE2E"})
    with write_atomically(path) as temporary:
        ET.ElementTree(root).write(temporary, encoding="utf-8", xml_declaration=True)
