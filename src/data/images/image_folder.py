"""A folder of images, as people keep them: by class, by part of a split, or just so."""

import logging
import os
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from src.csv_tables import some
from src.data.images.dicom import is_dicom
from src.data.images.parts import PART_NAMES
from src.data.images.places import DataFolder, outside
from src.data.listing import Listing
from src.data.readers.tensor_files import image_ids

_LOGGER = logging.getLogger(__name__)
IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".jp2", ".pgm", ".ppm", ".dcm", ".dicom"}
)


def list_image_folder(
    folder: str | Path, pattern: str = "*", case_pattern: str | None = None, has_classes: bool | None = None
) -> Listing:
    """Lists the images of a folder.

    Where all its folders are called train, val or test (or as `PART_NAMES` has it), they are the parts of a split. In
    it, or in each part, lie images, or a folder for each class, whose name is the label. An image's id is its path
    without the suffix, folders joined by `__`. Names that start with a dot are left out.

    Args:
        folder: the folder.
        pattern: what a path must look like, with `*` for anything: `*.jpg`, `*/images/*`.
        case_pattern: a regular expression that finds the case in an id, its first group where it has one:
            `^(P[0-9]+)_`. None: each image is a case of its own.
        has_classes: whether folders are classes; None: where all images lie in folders.

    Returns:
        Columns `case_id`, `image_id`, `label` (empty without classes) and `path`, sorted by path.

    Raises:
        FileNotFoundError: when there is no such folder, or no image in it.
        ValueError: when images lie in class folders and beside them, an image lies elsewhere (a link), two images would
            have one id, or an id has no case.
    """
    paths = find_images(folder, pattern)
    folders = [path.partition("/")[0] if "/" in path else "" for path in paths]
    in_parts = all(name.lower() in PART_NAMES for name in folders)
    below = [path.partition("/")[2] for path in paths] if in_parts else paths
    if has_classes is None:
        in_folders = {"/" in path for path in below}
        if len(in_folders) > 1:
            beside = [path for path, rest in zip(paths, below, strict=True) if "/" not in rest]
            raise ValueError(
                f"Expected the images of {folder} all in folders of their class, or none, got {some(beside)} beside "
                "such folders. Move them, or say which it is: dataset.listing.has_classes=true or false."
            )
        has_classes = in_folders.pop()
    labels = [path.rpartition("/")[0].partition("/")[0] if has_classes else "" for path in below]
    ids = image_ids(paths, folder)
    parts: dict[str, list[str]] = {}
    for image_id, name in zip(ids, folders, strict=True):
        if in_parts:
            parts.setdefault(PART_NAMES[name.lower()], []).append(image_id)
    columns = {"case_id": find_cases(ids, case_pattern), "image_id": ids, "label": labels, "path": paths}
    return Listing(columns, parts or None)


def find_images(folder: str | Path, pattern: str = "*") -> list[str]:
    """Returns the images below a folder: paths relative to it, with "/", sorted. What is no image is logged.

    Raises:
        FileNotFoundError: when there is no such folder, or no image in it.
        ValueError: when a link leads out of it, or to another folder.
    """
    if folder is None or not Path(folder).is_dir():
        raise FileNotFoundError(f"Expected a folder of images at {folder}, found none. Give dataset.dir=<folder>.")
    data, images, others = DataFolder(folder), [], []
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        prefix = "" if place == os.fspath(folder) else Path(os.path.relpath(place, folder)).as_posix() + "/"
        if links := [name for name in folders if os.path.islink(os.path.join(place, name))]:
            raise outside(f"{prefix}{links[0]}, a link to a folder", str(folder))
        for name in sorted(names):
            if name.startswith(".") or not fnmatchcase(prefix + name, pattern):
                continue
            suffix = os.path.splitext(name)[1].lower()
            path = os.path.join(place, name)
            if suffix in IMAGE_SUFFIXES or (not suffix and os.path.isfile(path) and is_dicom(Path(path))):
                if os.path.islink(path):
                    data.find(prefix + name, str(folder))
                images.append(prefix + name)
            else:
                others.append(prefix + name)
    if others:
        _LOGGER.info("Left out %d files of %s that are no images: %s", len(others), folder, some(others))
    if not images:
        raise FileNotFoundError(
            f"Expected images ({', '.join(sorted(IMAGE_SUFFIXES))}) in {folder}, found none"
            f"{f', but {some(others)}' if others else ''}. Give dataset.dir=<folder>."
        )
    return sorted(images)


def find_cases(item_ids: Sequence[str], pattern: str | None) -> list[str]:
    """Returns the case of each id: what the first group of a regular expression finds in it, or the id itself.

    Raises:
        ValueError: when it is no regular expression, or finds nothing in an id.
    """
    if pattern is None:
        return list(item_ids)
    try:
        matches = [re.search(pattern, item_id) for item_id in item_ids]
    except re.error as error:
        raise ValueError(f"Expected a regular expression in case_pattern, got {pattern!r}: {error}.") from error
    if lost := [item_id for item_id, match in zip(item_ids, matches, strict=True) if match is None]:
        raise ValueError(
            f"Expected case_pattern {pattern!r} to find the case in every id, got nothing in {some(lost)}: correct the "
            "pattern; the ids are paths with `__` for `/`."
        )
    return [match[1] if match.re.groups else match[0] for match in matches if match is not None]
