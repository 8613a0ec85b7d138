"""The images that a data set's csv lists, read by id."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from src.activation_spec import ActivationSpec
from src.csv_tables import read_table, repeated, some
from src.data.images.arrays import ImageArrays
from src.data.images.decode import MAX_PIXELS, read_image
from src.data.images.places import DataFolder, names_outside, outside, parse_place
from src.data.images.tars import read_member
from src.records import id_column
from src.stores.activations.index import Identity

_FIRST_LINE = 2  # after the header


class ImageSource:
    """The images of a csv, in its order; several threads may read at once.

    Attributes:
        item_ids: in the order of the csv.

    Args:
        metadata_csv: the csv: an id column and `path`, relative to `folder`: of a file, or of an image within one, an
            array's `<file>[<index>]` or a tar file's `<file>/<name>` (see `src.data.images.places`).
        folder: that the paths are relative to.
        max_pixels: see `read_image`.
        window: see `read_image`.

    Raises:
        FileNotFoundError: when there is no csv.
        ValueError: when it lacks a column, an id occurs twice, or a path is empty or leaves the folder.
    """

    def __init__(
        self,
        metadata_csv: str | Path,
        folder: str | Path,
        max_pixels: int = MAX_PIXELS,
        window: Sequence[float] | None = None,
    ) -> None:
        self._csv, self._folder = Path(metadata_csv), DataFolder(folder)
        self._max_pixels, self._window = max_pixels, window
        self._arrays = ImageArrays()
        if not self._csv.is_file():
            raise FileNotFoundError(
                f"Expected the csv of the images at {self._csv}, found no such file. Write it with task=metadata, or "
                "give dataset.metadata_csv=<csv>."
            )
        table = read_table(self._csv)
        if "path" not in table:
            raise ValueError(
                f"Expected a column path in {self._csv}, relative to dataset.dir, got {list(table)}. Add it, or write "
                "the csv with task=metadata."
            )
        self.item_ids = table[id_column(table, self._csv)]
        if twice := repeated(self.item_ids):
            raise ValueError(f"Expected every id once in {self._csv}, got {some(twice)} more than once.")
        lines = zip(self.item_ids, table["path"], strict=True)
        self._places = {item_id: (place, line) for line, (item_id, place) in enumerate(lines, _FIRST_LINE)}
        for place, line in self._places.values():
            if names_outside(place):
                raise outside(place, f"{self._csv}, line {line}")

    def read(self, item_id: str) -> np.ndarray:
        """Reads an image: uint8 [height, width, 3].

        Raises:
            FileNotFoundError: when the item or its file does not exist.
            ImageFileError: when the file cannot be used; see `read_image`.
            ValueError: when a link of this path leaves the folder.
        """
        text, path = self._find(item_id)
        place = parse_place(text)
        if place.index is not None:
            return self._arrays.read(path, place.index, place.key)
        if place.key is None:
            return read_image(path, self._max_pixels, self._window)
        content = read_member(path, place.key)
        return read_image(path / place.key, self._max_pixels, self._window, content)

    def path(self, item_id: str) -> Path:
        """Returns the file that holds an image; raises as `read` does where there is none."""
        return self._find(item_id)[1]

    def identity(self, item_id: str) -> Identity:
        """Returns the place of an image (relative to the folder), bytes and time of change (ns) of its file."""
        text, path = self._find(item_id)
        status = os.stat(path)
        return text, status.st_size, status.st_mtime_ns

    def _find(self, item_id: str) -> tuple[str, Path]:
        if item_id not in self._places:
            raise FileNotFoundError(f"Expected an image {item_id!r} in {self._csv}, got no line of that id.")
        text, line = self._places[item_id]
        return text, self._folder.find(parse_place(text).file, f"{self._csv}, line {line}")


def open_images(dataset: Any) -> ImageSource:
    """Opens the images of a data set's configuration: `metadata_csv`, `dir`, `max_pixels`, `window`."""
    if dataset.dir is None:
        raise ValueError("Expected the folder of the images, got none: give dataset.dir=<folder>.")
    options = {key: dataset.get(key) for key in ("max_pixels", "window") if dataset.get(key) is not None}
    return ImageSource(dataset.metadata_csv, dataset.dir, **options)


def as_decoded(spec: ActivationSpec, dataset: Any) -> ActivationSpec:
    """Returns a spec with the window of grey values that images of a data set are decoded with, where there is one."""
    window = dataset.get("window")
    return spec if window is None else replace(spec, transform=f"window {list(window)}, {spec.transform}")
