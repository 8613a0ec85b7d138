"""What the packed store is made from: the activations of many items, in whatever files they come."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from src.data.readers.h5_files import FeatureFileError
from src.stores.activations.index import Identity
from src.stores.activations.writer import ItemRows

_LOGGER = logging.getLogger(__name__)


class FeatureReader(ABC):
    """Reads the activations of items one by one: a folder of a file an item, or tensors of many images.

    Attributes:
        path: the folder, or the first of the files: what the store of its activations is known by.
        skips: whether items whose files are bad or missing are left out.
        skipped: why, by item id.

    Args:
        path: see above.
        on_bad_file: `error` raises at the first bad or missing file; `skip` leaves items out, with a warning each.
    """

    def __init__(self, path: str | Path, on_bad_file: str) -> None:
        self.path = Path(path)
        self.skips = on_bad_file == "skip"
        self.skipped: dict[str, str] = {}
        self._places: dict[str, Any] = {}

    @property
    def item_ids(self) -> list[str]:
        """The items, sorted; without those skipped."""
        return sorted(self._places.keys() - self.skipped.keys())

    @cached_property
    @abstractmethod
    def d_in(self) -> int:
        """The width of the activations."""

    @abstractmethod
    def open(self, item_id: str) -> ItemRows:
        """Reads the header and the coords of an item; its rows are read by `ItemRows.pieces`.

        Raises:
            FileNotFoundError: when it has no file.
            FeatureFileError: when that is damaged, empty, without features, or of another width than the others; also
                by `ItemRows.pieces`.
        """

    @abstractmethod
    def identity(self, item_id: str) -> Identity:
        """Returns path (relative, wherever the files lie), bytes and time of change (ns) of an item's file.

        Raises:
            FileNotFoundError: when it has none.
        """

    def patch_size_of_patch_file(self, item_id: str) -> int | None:  # noqa: ARG002
        """Returns the edge of a patch in level-0 pixels that the item's patch file states; None where there is none."""
        return None

    @contextmanager
    def skipping(self, item_id: str) -> Iterator[None]:
        """Skips an item whose file the block finds bad or missing, where that is asked for."""
        try:
            yield
        except (FileNotFoundError, FeatureFileError) as error:
            if not self.skips:
                raise
            self.skip(item_id, str(error))

    def skip(self, item_id: str, reason: str) -> None:
        """Leaves an item out from now on, with a warning."""
        self.skipped[item_id] = reason
        _LOGGER.warning("Skipped %s: %s", item_id, reason)
