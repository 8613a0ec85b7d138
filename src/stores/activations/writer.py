"""Adds items to a packed store, shard by shard; a shard that is there is whole."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np

from src.activation_spec import ActivationSpec
from src.files import remove_leftovers, start_array_digest, write_atomically
from src.prefetch import prefetch
from src.stores.activations.index import (
    Identity,
    IndexRow,
    coords_path,
    digest_coords,
    remove_unlisted,
    shard_numbers,
    shard_path,
    write_index,
)

SHARD_BYTES = 1 << 30
"""The largest shard, unless one item is larger: what a kill loses, and few files for large sets."""
_LARGE_BYTES = 2 << 20
_HEADER_BYTES = 4096


@dataclass(frozen=True)
class ItemRows:
    """The activations of one item: what its file's header says, and how to read the rows.

    Attributes:
        item_id: its id.
        path: the file, for messages.
        n_rows: the number of rows.
        d_in: their width.
        dtype: float16 where the file holds that, else float32.
        pieces: yields the rows in order, [n, d_in] of that type, while the item is open; raises when a value is not
            finite.
        coords: [n_rows, 2] int32, the level-0 pixel (x, y) of each patch's top-left corner; None where there are none.
        coords_missing: why there are no coords; '' where there are.
        patch_size_level0: the patch's edge in level-0 pixels; None when the file does not state it.
        spec: what the activations are of, as far as the file says.
    """

    item_id: str
    path: Path
    n_rows: int
    d_in: int
    dtype: np.dtype
    pieces: Callable[[], Iterator[np.ndarray]]
    coords: np.ndarray | None = None
    coords_missing: str = ""
    patch_size_level0: int | None = None
    spec: ActivationSpec = field(default_factory=ActivationSpec)

    @property
    def n_bytes(self) -> int:
        """The size of the rows."""
        return self.n_rows * self.d_in * self.dtype.itemsize


class StoreWriter:
    """Adds items to the store in a folder, whose lock the caller holds; a context manager.

    Items go into the open shard of their type, which is written aside and gets its name when it is full and at the end.
    When the block fails, shards that have their name stay, and what was written aside goes.

    Args:
        folder: of the store; may be missing.
        shard_bytes: a shard gets no further item that would make it larger; SHARD_BYTES when None.
        keeps: whether the items of open shards stay when the block fails: each of them is whole.
    """

    def __init__(self, folder: Path, shard_bytes: int | None = None, keeps: bool = False) -> None:
        numbers = shard_numbers(folder)
        remove_leftovers(folder)
        remove_unlisted(folder, numbers)
        self._folder, self._keeps = folder, keeps
        self._shard_bytes = SHARD_BYTES if shard_bytes is None else shard_bytes
        self._next_number = max(numbers, default=-1) + 1
        self._open: dict[np.dtype, tuple[_Shard, ExitStack]] = {}

    def add(self, item: ItemRows, identity: Identity) -> None:
        """Writes the rows of an item; when that fails with an item that can be left out, the next one may follow.

        Args:
            item: the rows.
            identity: of its file.

        Raises:
            ValueError: when there are other rows than the header says.
            OSError: when the disk is full.
        """
        if item.dtype in self._open and self._open[item.dtype][0].n_bytes + item.n_bytes > self._shard_bytes:
            self._open.pop(item.dtype)[1].close()
        if item.dtype not in self._open:
            files = ExitStack()
            shard = files.enter_context(_open_shard(self._folder, self._next_number, item.d_in, item.dtype))
            self._open[item.dtype] = shard, files
            self._next_number += 1
        self._open[item.dtype][0].add(item, identity)

    def __enter__(self) -> "StoreWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        shards = ExitStack()
        for _, files in self._open.values():
            shards.push(files)
        if self._keeps:
            shards.close()
            return None
        return shards.__exit__(kind, error, trace)


def _write_pieces(write: Callable[[np.ndarray], None], item: ItemRows) -> None:
    """Writes the rows of an item; digests and writes a piece of a large one while the next is read."""
    n_workers = int(item.n_bytes >= _LARGE_BYTES)  # handing over takes longer than writing a small one
    for _ in prefetch((partial(write, piece) for piece in item.pieces()), n_workers, 2):
        pass


class _NoItemsError(Exception):
    """A shard was opened for items that all turned out bad."""


@contextmanager
def _open_shard(folder: Path, number: int, d_in: int, dtype: np.dtype) -> Iterator["_Shard"]:
    """Opens a shard to add items to. At the end its files get their names, the table last; without items none stays."""
    with suppress(_NoItemsError):
        with write_atomically(shard_path(folder, number)) as temporary, open(temporary, "wb") as file:
            shard = _Shard(file, number, d_in, dtype)
            yield shard
            if not shard.rows:
                raise _NoItemsError
            file.truncate(_HEADER_BYTES + shard.n_bytes)
            file.seek(0)
            file.write(shard.header())
        if any(row.coords_digest for row in shard.rows):
            coords = np.concatenate(shard.coords)
            with write_atomically(coords_path(folder, number), coords.nbytes) as temporary:
                np.save(temporary, coords)
        write_index(folder, number, shard.rows, shard.specs)


class _Shard:
    """A shard that is being written: an npy file, whose header gets the number of rows at the end.

    Attributes:
        rows: of the index, one an item.
        specs: of the items, with their digests.
        coords: [n_rows, 2] int32 of each item, 0 where it has none.
    """

    def __init__(self, file: BinaryIO, number: int, d_in: int, dtype: np.dtype) -> None:
        self._file, self._number, self._d_in, self._dtype = file, number, d_in, dtype
        self.rows: list[IndexRow] = []
        self.specs: dict[ActivationSpec, str] = {}
        self.coords: list[np.ndarray] = []
        self._n_rows = 0

    @property
    def n_bytes(self) -> int:
        """The size of the rows."""
        return self._n_rows * self._d_in * self._dtype.itemsize

    def add(self, item: ItemRows, identity: Identity) -> None:
        """Writes the rows of an item behind those that are whole: of an item that failed before, nothing stays."""
        start = self._file.seek(_HEADER_BYTES + self.n_bytes)
        hasher = start_array_digest((item.n_rows, item.d_in))

        def write(piece: np.ndarray) -> None:
            piece = np.ascontiguousarray(piece, dtype=self._dtype)
            hasher.update(piece.astype(np.float32, copy=False).data)
            self._file.write(piece.data)

        _write_pieces(write, item)
        n_bytes = self._file.tell() - start
        if n_bytes != item.n_bytes:
            raise ValueError(
                f"Expected {item.n_bytes} bytes of rows in {item.path}, as its header says, got {n_bytes}."
            )
        if item.spec not in self.specs:
            self.specs[item.spec] = item.spec.digest
        coords_digest = "" if item.coords is None else digest_coords(item.coords)
        place = (item.item_id, self._number, self._n_rows, self._n_rows + item.n_rows)
        of_coords = (coords_digest, item.coords_missing, item.patch_size_level0 or 0)
        self.rows.append(IndexRow(*place, hasher.hexdigest(), *of_coords, self.specs[item.spec], *identity))
        self.coords.append(np.zeros((item.n_rows, 2), np.int32) if item.coords is None else item.coords)
        self._n_rows += item.n_rows

    def header(self) -> bytes:
        """Returns the npy header (format 1.0, NEP 1), padded so that rows begin at a page: they are written faster."""
        shape = (self._n_rows, self._d_in)
        header = {"descr": np.lib.format.dtype_to_descr(self._dtype), "fortran_order": False, "shape": shape}
        start = np.lib.format.magic(1, 0)
        n_bytes = _HEADER_BYTES - len(start) - 2
        return start + n_bytes.to_bytes(2, "little") + f"{header!r:<{n_bytes - 1}}\n".encode()
