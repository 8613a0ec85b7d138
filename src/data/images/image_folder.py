"""A folder of images, as people keep them: by class, by part of a split, or just so."""

import logging
import os
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

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
    folder: str | Path,
    pattern: str = "*",
    case_pattern: str | None = None,
    has_classes: bool | None = None,
    label_pattern: str | None = None,
    parts: Mapping[str, str] | None = None,
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
        label_pattern: a regular expression that finds the label in an id, as `case_pattern` finds the case, in place of
            folders.
        parts: other parts for what the folders are called: `{val: test}` for data whose validation images are what
            everybody tests on.

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
    if label_pattern is not None:
        has_classes = False
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
    if label_pattern is not None:
        labels = _find_texts(ids, label_pattern, "label")
    ids_of: dict[str, list[str]] = {}
    for image_id, name in zip(ids, folders, strict=True):
        if in_parts:
            part = PART_NAMES[name.lower()]
            ids_of.setdefault((parts or {}).get(part, part), []).append(image_id)
    columns = {"case_id": find_cases(ids, case_pattern), "image_id": ids, "label": labels, "path": paths}
    return Listing(columns, ids_of or None)


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


def find_by_name(folder: str | Path, names: Sequence[str], source: str, pattern: str = "*") -> list[str]:
    """Returns the path of the one image below a folder that has each name, with or without its suffix.

    Args:
        folder: the folder.
        names: of the images.
        source: where they stand, for messages.
        pattern: see `find_images`.

    Raises:
        FileNotFoundError: when there is none of a name, or several.
    """
    by_name: dict[str, list[str]] = {}
    for path in find_images(folder, pattern):
        for name in {PurePosixPath(path).name, PurePosixPath(path).stem}:
            by_name.setdefault(name, []).append(path)
    for number, name in enumerate(names, 1):
        if len(found := by_name.get(name, [])) != 1:
            raise FileNotFoundError(
                f"Expected one image called {name!r} below {folder}, as {source} says (entry {number}), found "
                f"{some(found) if found else 'none'}. Copy it there, or choose among several with "
                "dataset.listing.pattern=<folder>/*."
            )
    return [by_name[name][0] for name in names]


def find_cases(item_ids: Sequence[str], pattern: str | None) -> list[str]:
    """Returns the case of each id: what the first group of a regular expression finds in it, or the id itself.

    Raises:
        ValueError: when it is no regular expression, or finds nothing in an id.
    """
    return list(item_ids) if pattern is None else _find_texts(item_ids, pattern, "case")


def _find_texts(item_ids: Sequence[str], pattern: str, what: str) -> list[str]:
    try:
        matches = [re.search(pattern, item_id) for item_id in item_ids]
    except re.error as error:
        raise ValueError(f"Expected a regular expression in {what}_pattern, got {pattern!r}: {error}.") from error
    if lost := [item_id for item_id, match in zip(item_ids, matches, strict=True) if match is None]:
        raise ValueError(
            f"Expected {what}_pattern {pattern!r} to find the {what} in every id, got nothing in {some(lost)}: correct "
            "the pattern; the ids are paths with `__` for `/`."
        )
    return [match[1] if match.re.groups else match[0] for match in matches if match is not None]
