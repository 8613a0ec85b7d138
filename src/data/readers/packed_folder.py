"""A folder that task=embed made: a packed store, read as it is."""

from collections.abc import Iterable
from functools import cached_property, partial
from pathlib import Path

from src.data.readers.feature_reader import FeatureReader
from src.stores.activations.index import Identity, read_index, read_skipped, shard_numbers
from src.stores.activations.store import ActivationStore
from src.stores.activations.writer import ItemRows


class PackedFolder(FeatureReader):
    """The activations of many images in one packed store.

    Args:
        path: the folder.
        on_bad_file: see `FeatureReader`; images that could not be read when the store was made are bad.

    Raises:
        ValueError: when a table of the store is damaged.
    """

    def __init__(self, path: str | Path, on_bad_file: str = "error") -> None:
        super().__init__(path, on_bad_file)
        self._places = dict(read_index(self.path))
        self._bad = {item_id: reason for item_id, (_, reason) in read_skipped(self.path).items()}

    @cached_property
    def d_in(self) -> int:
        """The width of the activations."""
        return self._store.d_in

    def store(self, item_ids: Iterable[str]) -> ActivationStore:
        """Returns the store of some items.

        Raises:
            FileNotFoundError: when it does not hold one of them and bad files are errors.
        """
        wanted = set(item_ids)
        for item_id in sorted(wanted - self._places.keys()):
            with self.skipping(item_id):
                self.identity(item_id)
        return ActivationStore(self.path, wanted)

    def open(self, item_id: str) -> ItemRows:
        """Finds an image; see `FeatureReader.open`."""
        self.identity(item_id)
        store, rows = self._store, self._store.rows(item_id)
        (n_rows, d_in), pieces = rows.shape, partial(iter, [rows])
        missing = store.index[item_id].coords_missing
        return ItemRows(item_id, self.path, n_rows, d_in, store.dtype, pieces, coords_missing=missing, spec=store.spec)

    def identity(self, item_id: str) -> Identity:
        """Returns path, bytes and time of change of the image that the activations are of."""
        if item_id not in self._places:
            reason = self._bad.get(item_id, "it was not embedded: run task=embed again")
            raise FileNotFoundError(f"Expected activations of {item_id!r} in {self.path}, got none: {reason}.")
        return self._places[item_id].identity

    @cached_property
    def _store(self) -> ActivationStore:
        return ActivationStore(self.path)


def is_packed(path: str | Path) -> bool:
    """Whether a folder holds a packed store."""
    return bool(shard_numbers(Path(path)))
