"""Images that come in arrays: CIFAR-10, CIFAR-100, and .npz files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from src.csv_tables import some
from src.data.images.arrays import count_entries, read_batch, read_npz
from src.data.images.errors import ImageFileError
from src.data.images.places import DataFolder
from src.data.listing import Listing

# Folder, batches by part, file of the class names, keys of the labels: name and where the names are.
# https://www.cs.toronto.edu/~kriz/cifar.html, "python version".
_CIFAR = {
    "cifar10": (
        "cifar-10-batches-py",
        {"train": [f"data_batch_{number}" for number in range(1, 6)], "test": ["test_batch"]},
        "batches.meta",
        {"label": (b"labels", b"label_names")},
    ),
    "cifar100": (
        "cifar-100-python",
        {"train": ["train"], "test": ["test"]},
        "meta",
        {"label": (b"fine_labels", b"fine_label_names"), "superclass": (b"coarse_labels", b"coarse_label_names")},
    ),
}


def list_cifar(folder: str | Path, which: Literal["cifar10", "cifar100"] = "cifar10") -> Listing:
    """Lists the images of CIFAR-10 or CIFAR-100 as they are published for Python, or of a sample of them.

    Args:
        folder: holds the batches, or `cifar-10-batches-py` (`cifar-100-python`) with them; else one file
            `<which>*.npz` with arrays as `list_npz` takes them.
        which: of the two.

    Returns:
        Columns `case_id` and `image_id` (`data_batch_1__00017`), `label`, for CIFAR-100 `superclass`, and `path`; the
        parts train and test where there are batches.

    Raises:
        FileNotFoundError: when none of them is there.
        ImageFileError: when a batch is damaged.
    """
    name, batches, meta, keys = _CIFAR[which]
    if folder is None or not Path(folder).is_dir():
        raise FileNotFoundError(f"Expected a folder with {name} at {folder}, found none. Give dataset.dir=<folder>.")
    place = next((place for place in ("", f"{name}/") if (Path(folder) / place / meta).is_file()), None)
    if place is None:
        samples = sorted(Path(folder).glob(f"{which}*.npz"))
        if len(samples) != 1:
            raise FileNotFoundError(
                f"Expected {name}/{meta} and the batches beside it, or one file {which}*.npz, in {folder}, found "
                f"{some([path.name for path in samples]) if samples else 'neither'}. Give dataset.dir=<folder>."
            )
        return list_npz(samples[0].name, folder)
    names = read_batch(Path(folder) / place / meta)
    columns: dict[str, list[str]] = {column: [] for column in ("case_id", "image_id", *keys, "path")}
    parts: dict[str, list[str]] = {}
    for part, files in batches.items():
        for file in files:
            batch = read_batch(DataFolder(folder).find(place + file, which))
            ids = _entries(columns, f"{place}{file}", file, len(batch[b"data"]))
            for column, (values, classes) in keys.items():
                columns[column] += [names[classes][value].decode() for value in batch[values]]
            parts.setdefault(part, []).extend(ids)
    return Listing(columns, parts)


def list_npz(
    file: str,
    folder: str | Path,
    images: str | Mapping[str, str] = "imgs",
    labels: str | Mapping[str, str] | None = "labels",
    classes: str | Sequence[str] | None = "classes",
) -> Listing:
    """Lists the images in an .npz file.

    Args:
        file: its name, relative to `folder`.
        folder: the data set's.
        images: the key of the images; by part (train, val, test) where they come split, as MedMNIST's do.
        labels: likewise of the labels, texts or whole numbers; None: there are none.
        classes: the key of the class names, or these; None: numbers stay.

    Returns:
        Columns `case_id` and `image_id` (`imgs__00017`), `label` and `path`.

    Raises:
        FileNotFoundError: when there is no such file.
        ImageFileError: when it is damaged, an array is missing, or there are not as many labels as images.
    """
    path = DataFolder(folder).find(file, "dataset.listing.file")
    names = read_npz(path, [classes])[0].tolist() if isinstance(classes, str) else classes
    columns: dict[str, list[str]] = {column: [] for column in ("case_id", "image_id", "label", "path")}
    parts: dict[str, list[str]] = {}
    by_part = images if isinstance(images, Mapping) else {"": images}
    for part, key in by_part.items():
        label_key = labels[part] if isinstance(labels, Mapping) else labels
        n_images = count_entries(path, key)
        values = [""] * n_images if label_key is None else read_npz(path, [label_key])[0].reshape(-1).tolist()
        if len(values) != n_images:
            raise ImageFileError(f"Expected a label for each of {n_images} images of {path}, got {len(values)}.")
        ids = _entries(columns, f"{file}/{key}", key, n_images)
        columns["label"] += [_label(value, names, path) for value in values]
        if part:
            parts[part] = ids
    return Listing(columns, parts or None)


def _entries(columns: Mapping[str, list[str]], place: str, name: str, n_images: int) -> list[str]:
    """Adds the ids and paths of the images of an array; returns the ids."""
    ids = [f"{name}__{index:05d}" for index in range(n_images)]
    columns["case_id"].extend(ids)
    columns["image_id"].extend(ids)
    columns["path"].extend(f"{place}[{index}]" for index in range(n_images))
    return ids


def _label(value: object, names: Sequence[str] | None, path: Path) -> str:
    if isinstance(value, str) or names is None:
        return str(value)
    if not isinstance(value, int) or not 0 <= value < len(names):
        raise ImageFileError(f"Expected labels from 0 to {len(names) - 1} in {path}, as it has classes, got {value!r}.")
    return str(names[value])
