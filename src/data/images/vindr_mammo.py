"""VinDr-Mammo: mammograms with the findings of radiologists, as boxes."""

import ast
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from src.csv_tables import read_table
from src.data.images.parts import group_by_part
from src.data.images.places import DataFolder, find_source
from src.data.images.table import ABSENT, PRESENT
from src.data.listing import Listing

_NONE = "No Finding"
_EDGES = ("xmin", "ymin", "xmax", "ymax")


def list_vindr_mammo(
    folder: str | Path,
    csv: str,
    images: str,
    suffix: str,
    findings: Mapping[str, str],
    labels: Mapping[str, str] | None = None,
    edges: Sequence[str] = _EDGES,
    study: str = "study_id",
) -> Listing:
    """Lists the images of VinDr-Mammo (H. T. Nguyen et al., Scientific Data 2023).

    Args:
        folder: the data set's.
        csv: `finding_annotations.csv`, relative to `folder`: a line a finding, or an image without any, with
            `study_id`, `image_id`, `finding_categories` (`['Mass', 'Skin Thickening']`), edges of the box and `split`;
            or the csv that Mammo-CLIP makes of it.
        images: the folder below `folder` with `<study_id>/<image_id><suffix>`.
        suffix: of the images: `.dicom`, or `.png` where they were converted.
        findings: categories to take over as labels, `present` or `absent`, by the name that they get.
        labels: columns to take over as labels of the image, by the name that they get.
        edges: the columns of the boxes, xmin, ymin, xmax and ymax, in pixels of the images as they are stored: of
            images that were resized others than those of the DICOM files.
        study: the column of the examinations.

    Returns:
        Columns `case_id` (the examination; patients are not named), `image_id`, the labels and `path`; the parts train
        and test; a box a category of each finding.

    Raises:
        FileNotFoundError: when the csv or an image is missing.
        ValueError: when a column is missing, or categories, edges or a part cannot be understood.
    """
    source = find_source(folder, csv)
    table, labels = read_table(source), labels or {}
    wanted = [study, "image_id", "finding_categories", "split", *edges, *labels.values()]
    if missing := [column for column in wanted if column not in table]:
        raise ValueError(f"Expected the columns {wanted} in {source}, got {list(table)}: {missing} are missing.")
    categories = [_categories(text, source, line) for line, text in enumerate(table["finding_categories"], 2)]
    item_ids = [item_id.removesuffix(suffix) for item_id in table["image_id"]]
    lines: dict[str, list[int]] = {}
    for line, item_id in enumerate(item_ids):
        lines.setdefault(item_id, []).append(line)
    ids, first = list(lines), [of_image[0] for of_image in lines.values()]
    studies = [table[study][line] for line in first]
    made = {"case_id": studies, "image_id": ids}
    seen = {item_id: {one for line in of_image for one in categories[line]} for item_id, of_image in lines.items()}
    for name, category in findings.items():
        made[name] = [PRESENT if category in seen[item_id] else ABSENT for item_id in ids]
    made |= {name: [table[column][line] for line in first] for name, column in labels.items()}
    made["path"] = [f"{images}/{name}/{item_id}{suffix}" for name, item_id in zip(studies, ids, strict=True)]
    data = DataFolder(folder)
    for path, line in zip(made["path"], first, strict=True):
        data.find(path, f"{source}, line {line + 2}")
    boxes: dict[str, list[Any]] = {name: [] for name in ("item_id", *_EDGES, "label")}
    for line, (item_id, of_line) in enumerate(zip(item_ids, categories, strict=True)):
        if not (named := [one for one in of_line if one != _NONE]):
            continue
        corners = _box([table[column][line] for column in edges], source, line + 2)
        for category in named:
            for name, value in zip(boxes, (item_id, *corners, category), strict=True):
                boxes[name].append(value)
    parts = group_by_part(ids, [table["split"][line] for line in first], f"column split of {source}")
    return Listing(made, parts, boxes)


def _categories(text: str, source: Path, line: int) -> list[str]:
    """Returns the categories of a finding, which the csv has as a list in Python's notation."""
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        found = None
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise ValueError(
            f"Expected a list of texts such as ['Mass'] in column finding_categories of {source}, line {line}, got "
            f"{text!r}: correct it there."
        )
    return found


def _box(texts: Sequence[str], source: Path, line: int) -> list[float]:
    try:
        xmin, ymin, xmax, ymax = map(float, texts)
    except ValueError:
        xmin = xmax = ymin = ymax = 0.0
    if not (xmin < xmax and ymin < ymax):
        raise ValueError(
            f"Expected the edges of a box, xmin < xmax and ymin < ymax, in line {line} of {source}, got {list(texts)}: "
            "correct it there."
        )
    return [xmin, ymin, xmax, ymax]
