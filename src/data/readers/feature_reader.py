"""What the packed store is made from: the activations of many items, in whatever files they come."""

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from src.data.readers.h5_files import FeatureFileError
from src.stores.activations.index import Identity
from src.stores.activations.writer import ItemRows

_LOGGER = logging.getLogger(__name__)
ON_BAD_FILE = ("error", "skip")


class BadFiles:
    """What is done about bad and missing files, and which were left out.

    Attributes:
        skipped: why, by item id.

    Args:
        on_bad_file: `error` raises at the first; `skip` leaves items out, with a warning each.

    Raises:
        ValueError: when it is neither.
    """

    def __init__(self, on_bad_file: str) -> None:
        if on_bad_file not in ON_BAD_FILE:
            raise ValueError(f"Expected dataset.on_bad_file to be one of {ON_BAD_FILE}, got {on_bad_file!r}.")
        self.are_skipped = on_bad_file == "skip"
        self.skipped: dict[str, str] = {}

    @contextmanager
    def skipping(self, item_id: str) -> Iterator[None]:
        """Skips an item whose file the block finds bad or missing, where that is asked for."""
        try:
            yield
        except (FileNotFoundError, FeatureFileError) as error:
            if not self.are_skipped:
                raise
            self.skip(item_id, str(error))

    def skip(self, item_id: str, reason: str) -> None:
        """Leaves an item out from now on, with a warning."""
        self.skipped[item_id] = reason
        _LOGGER.warning("Skipped %s: %s", item_id, reason)


class FeatureReader(Protocol):
    """Reads the activations of items one by one: a folder of a file an item, or tensors of many images."""

    @property
    def path(self) -> Path:
        """The folder, or the first of the files: what the store of its activations is known by."""
        ...

    @property
    def bad_files(self) -> BadFiles:
        """What is done about bad files."""
        ...

    @property
    def item_ids(self) -> list[str]:
        """The items, sorted; without those skipped."""
        ...

    @property
    def d_in(self) -> int:
        """The width of the activations."""
        ...

    def open(self, item_id: str) -> AbstractContextManager[ItemRows]:
        """Opens an item: reads the header and the coords. Rows can be read while it is open.

        Raises:
            FileNotFoundError: when it has no file.
            FeatureFileError: when that is damaged, empty, without features, or of another width than the others; also
                by `ItemRows.pieces`.
        """
        ...

    def identity(self, item_id: str) -> Identity:
        """Returns the identity of an item's file.

        Raises:
            FileNotFoundError: when it has none.
        """
        ...

    def patch_size_of_patch_file(self, item_id: str) -> int | None:
        """Returns the edge of a patch in level-0 pixels that the item's patch file states; None where there is none."""
        ...
