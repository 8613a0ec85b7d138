"""Splits that come as pickled dictionaries, from a class to the names of its images."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from src.csv_tables import read_table, repeated, some
from src.data.images.image_folder import find_by_name
from src.data.images.places import find_source
from src.data.listing import Listing

# What such dictionaries are made of beyond plain values.
_SAFE = {("collections", "defaultdict"), ("builtins", "list")}


def list_class_pickles(
    folder: str | Path,
    files: Mapping[str, str | None],
    pattern: str = "*",
    cases: Mapping[str, str] | None = None,
) -> Listing:
    """Lists the images of `class2images_train.p` and the like (LaBo, Y. Yang et al., CVPR 2023, and what builds on it).

    Nothing in the files is run: whatever a pickle names beyond dictionaries, lists and texts is refused.

    Args:
        folder: the data set's; the images lie anywhere below it, and are called as the files say, with or without their
            suffix.
        files: of each part of the split, relative to `folder`; None where there is no such part.
        pattern: what a path of an image must look like, with `*` for anything.
        cases: `csv`, relative to `folder`, and its columns `id` and `case`; None: each image is a case of its own.

    Returns:
        Columns `case_id`, `image_id`, `label` and `path`.

    Raises:
        FileNotFoundError: when a file or an image is missing.
        ValueError: when a file is no such pickle, an image is named twice, or its case is not known.
    """
    ids: list[str] = []
    labels: list[str] = []
    parts: dict[str, list[str]] = {}
    for part, file in files.items():
        if file is None:
            continue
        by_class = _read(find_source(folder, file))
        parts[part] = [Path(name).stem for names in by_class.values() for name in names]
        ids += parts[part]
        labels += [label for label, names in by_class.items() for _ in names]
    if twice := repeated(ids):
        raise ValueError(
            f"Expected every image once in {list(files.values())} of {folder}, got {some(twice)} more than once."
        )
    paths = find_by_name(folder, ids, f"{list(files.values())}", pattern)
    case_ids = ids if cases is None else _read_cases(folder, ids, **cases)
    return Listing({"case_id": case_ids, "image_id": ids, "label": labels, "path": paths}, parts)


def _read(path: Path) -> dict[str, list[str]]:
    try:
        with open(path, "rb") as file:
            content = _PlainOnly(file).load()
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, IndexError, KeyError) as error:
        raise ValueError(
            f"Expected a dictionary of classes, pickled, at {path}, got {error}. Copy it again."
        ) from error
    texts = isinstance(content, dict) and all(
        isinstance(label, str) and isinstance(names, list) and all(isinstance(name, str) for name in names)
        for label, names in content.items()
    )
    if not texts:
        raise ValueError(
            f"Expected a dictionary from class names to lists of image names in {path}, got something else. "
            "Give dataset.listing.files.<part>=<file>."
        )
    return content


class _PlainOnly(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Any:
        if (module_name, global_name) not in _SAFE:
            raise pickle.UnpicklingError(f"a pickle that names {module_name}.{global_name}, which was not run")
        return super().find_class(module_name, global_name)


def _read_cases(folder: str | Path, ids: list[str], csv: str, id: str, case: str) -> list[str]:
    path = find_source(folder, csv)
    table = read_table(path)
    if missing := [column for column in (id, case) if column not in table]:
        raise ValueError(f"Expected the columns {[id, case]} in {path}, got {list(table)}: {missing} are missing.")
    case_of = dict(zip(table[id], table[case], strict=True))
    if lost := [item_id for item_id in ids if item_id not in case_of]:
        raise ValueError(f"Expected a line of every image in {path}, got none of {some(lost)}.")
    return [case_of[item_id] for item_id in ids]
