"""What the items and rows of a data set are called in text that people read."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Words(NamedTuple):
    """Names of an item and of a row of activations, one and many."""

    item: str
    items: str
    row: str
    rows: str


SLIDES = Words("slide", "slides", "patch", "patches")
IMAGES = Words("image", "images", "token", "tokens")
ITEMS = Words("item", "items", "row", "rows")


def words_of(dataset: Mapping[str, Any]) -> Words:
    """Returns the words for a data set's configuration: of images, of tensors that do not say, else of slides."""
    if dataset.get("images_dir") is not None:
        return IMAGES
    return SLIDES if dataset.get("tensors") is None else ITEMS
