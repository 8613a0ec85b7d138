"""Images that text files list with the number of their class, as Caffe, Places365 and ImageNet's devkit have them."""

from collections.abc import Mapping
from pathlib import Path

from src.csv_tables import read_text, some
from src.data.images.places import DataFolder, find_source
from src.data.listing import Listing
from src.data.readers.tensor_files import image_ids


def list_files(
    folder: str | Path,
    lists: Mapping[str, str | None],
    roots: Mapping[str, str],
    classes: str | None = None,
) -> Listing:
    """Lists the images of text files with a line an image: its path, a space, and the number of its class.

    Args:
        folder: the data set's.
        lists: the file of each part of the split, relative to `folder`; None where there is no such part.
        roots: by part, the folder below `folder` that the paths in its file begin at; a `/` before them is left out.
        classes: a file with a line a class, its name, and after a space its number where the order is not that of the
            lines (`/a/airfield 0`, whose folder of one letter is left out); None: numbers are the labels.

    Returns:
        Columns `case_id`, `image_id`, `label` and `path`.

    Raises:
        FileNotFoundError: when a file or an image is missing.
        ValueError: when a line is not a path and a number, or a number has no class.
    """
    names = None if classes is None else _read_classes(find_source(folder, classes))
    columns: dict[str, list[str]] = {"label": [], "path": []}
    sizes: dict[str, int] = {}
    data = DataFolder(folder)
    for part, file in lists.items():
        if file is None:
            continue
        source = find_source(folder, file)
        lines = [line.rsplit(maxsplit=1) for line in read_text(source).splitlines() if line.strip()]
        for number, line in enumerate(lines, 1):
            if len(line) != 2 or not line[1].isdecimal():
                raise ValueError(f"Expected a path and a number in line {number} of {source}, got {' '.join(line)!r}.")
            if names is not None and line[1] not in names:
                raise ValueError(
                    f"Expected the number of a class of {classes} in line {number} of {source}, got {line[1]}."
                )
            path = f"{roots[part]}/{line[0].lstrip('/')}"
            data.find(path, f"{source}, line {number}")
            columns["path"].append(path)
            columns["label"].append(line[1] if names is None else names[line[1]])
        sizes[part] = len(lines)
    ids = image_ids(columns["path"], folder)
    parts, start = {}, 0
    for part, n_images in sizes.items():
        parts[part] = ids[start : start + n_images]
        start += n_images
    return Listing({"case_id": ids, "image_id": ids, **columns}, parts)


def _read_classes(path: Path) -> dict[str, str]:
    lines = [line.split() for line in read_text(path).splitlines() if line.strip()]
    names = [words[0].strip("/") for words in lines]
    names = [name[2:] if len(name) > 2 and name[1] == "/" else name for name in names]
    numbers = [words[1] if len(words) > 1 else str(i) for i, words in enumerate(lines)]
    if len(set(numbers)) != len(numbers):
        raise ValueError(f"Expected each number once in {path}, got {some(numbers)}.")
    return dict(zip(numbers, names, strict=True))
