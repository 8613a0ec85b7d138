"""Adds items to a packed store, shard by shard; a shard that is there is whole."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from src.activation_spec import ActivationSpec
from src.files import remove_leftovers, start_array_digest, write_atomically
from src.stores.activations.index import (
    Identity,
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

    def read(self) -> np.ndarray:
        """Returns all rows [n_rows, d_in] float32."""
        return np.concatenate(list(self.pieces())).astype(np.float32, copy=False)


class StoreWriter:
    """Adds items to the store in a folder, whose lock the caller holds; a context manager.

    Items go into the open shard of their type, which is written aside and gets its name when it is full and at the end.
    When the block fails, shards that have their name stay, and what was written aside goes.

    Args:
        folder: of the store; may be missing.
    """

    def __init__(self, folder: Path) -> None:
        numbers = shard_numbers(folder)
        remove_leftovers(folder)
        remove_unlisted(folder, numbers)
        self._folder = folder
        self._next_number = max(numbers, default=-1) + 1
        self._open: dict[np.dtype, _Shard] = {}
        # Digests and writes a piece while the next is read.
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="pack")

    def add(self, item: ItemRows, identity: Identity) -> None:
        """Writes the rows of an item; when that fails with an item that can be left out, the next one may follow.

        Args:
            item: the rows.
            identity: of its file.

        Raises:
            ValueError: when there are other rows than the header says.
            OSError: when the disk is full.
        """
        shard = self._open.get(item.dtype)
        if shard is not None and shard.n_bytes + item.n_bytes > SHARD_BYTES:
            del self._open[item.dtype]
            shard.finish()
            shard = None
        if shard is None:
            shard = self._open[item.dtype] = _Shard(self._folder, self._next_number, item.d_in, item.dtype)
            self._next_number += 1
        shard.add(item, identity, self._pool)

    def __enter__(self) -> "StoreWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        self._pool.shutdown()
        shards = ExitStack()
        for shard in self._open.values():
            shards.push(shard.leave)
        return shards.__exit__(kind, error, trace)


def _write_pieces(write: Callable[[np.ndarray], None], item: ItemRows, pool: ThreadPoolExecutor) -> None:
    """Writes the rows of an item, each piece of a large one while the next is read."""
    if item.n_bytes < _LARGE_BYTES:  # handing over takes longer than writing
        for piece in item.pieces():
            write(piece)
        return
    writing: list[Future[None]] = []
    try:
        for piece in item.pieces():
            for one in writing:
                one.result()
            writing = [pool.submit(write, piece)]
    finally:
        wait(writing)
    for one in writing:
        one.result()


class _NoItemsError(Exception):
    """A shard was opened for items that all turned out bad."""


class _Shard:
    """A shard that is being written: an npy file, whose header gets the number of rows at the end."""

    def __init__(self, folder: Path, number: int, d_in: int, dtype: np.dtype) -> None:
        self._folder, self._number = folder, number
        self._d_in, self._dtype = d_in, dtype
        self._rows: list[dict[str, Any]] = []
        self._coords: list[np.ndarray | None] = []
        self._specs: dict[ActivationSpec, str] = {}
        self._n_rows = 0
        with ExitStack() as stack:
            temporary = stack.enter_context(write_atomically(shard_path(folder, number)))
            self._file = stack.enter_context(open(temporary, "wb"))
            self._stack = stack.pop_all()

    @property
    def n_bytes(self) -> int:
        """The size of the rows."""
        return self._n_rows * self._d_in * self._dtype.itemsize

    def add(self, item: ItemRows, identity: Identity, pool: ThreadPoolExecutor) -> None:
        """Writes the rows of an item behind those that are whole: of an item that failed before, nothing stays."""
        start = self._file.seek(_HEADER_BYTES + self.n_bytes)
        hasher = start_array_digest((item.n_rows, item.d_in))

        def write(piece: np.ndarray) -> None:
            piece = np.ascontiguousarray(piece, dtype=self._dtype)
            hasher.update(piece.astype(np.float32, copy=False).data)
            self._file.write(piece.data)

        _write_pieces(write, item, pool)
        n_bytes = self._file.tell() - start
        if n_bytes != item.n_bytes:
            raise ValueError(
                f"Expected {item.n_bytes} bytes of rows in {item.path}, as its header says, got {n_bytes}."
            )
        if item.spec not in self._specs:
            self._specs[item.spec] = item.spec.digest
        row = {"item_id": item.item_id, "start": self._n_rows, "stop": self._n_rows + item.n_rows}
        row |= {"digest": hasher.hexdigest(), "coords_digest": "", "coords_missing": item.coords_missing}
        if item.coords is not None:
            row["coords_digest"] = digest_coords(item.coords)
        row |= {"patch_size_level0": item.patch_size_level0 or 0, "spec": self._specs[item.spec]}
        row |= dict(zip(("path", "bytes", "mtime_ns"), identity, strict=True))
        self._rows.append(row)
        self._coords.append(item.coords)
        self._n_rows += item.n_rows

    def finish(self) -> None:
        """Gives the files their names, the table last; a shard without items leaves nothing."""
        if not self._rows:
            with suppress(_NoItemsError), self._stack:
                raise _NoItemsError
            return
        with self._stack:
            self._file.truncate(_HEADER_BYTES + self.n_bytes)
            self._file.seek(0)
            self._file.write(self._header())
        if any(coords is not None for coords in self._coords):
            self._write_coords()
        write_index(self._folder, self._number, self._rows, self._specs)

    def leave(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        """Finishes the shard, or removes it after an error."""
        return self.finish() if error is None else self._stack.__exit__(kind, error, trace)

    def _header(self) -> bytes:
        """Returns the npy header (format 1.0, NEP 1), padded so that rows begin at a page: they are written faster."""
        shape = (self._n_rows, self._d_in)
        header = {"descr": np.lib.format.dtype_to_descr(self._dtype), "fortran_order": False, "shape": shape}
        start = np.lib.format.magic(1, 0)
        n_bytes = _HEADER_BYTES - len(start) - 2
        return start + n_bytes.to_bytes(2, "little") + f"{header!r:<{n_bytes - 1}}\n".encode()

    def _write_coords(self) -> None:
        coords = np.zeros((self._n_rows, 2), np.int32)
        for row, values in zip(self._rows, self._coords, strict=True):
            if values is not None:
                coords[row["start"] : row["stop"]] = values
        with write_atomically(coords_path(self._folder, self._number), coords.nbytes) as temporary:
            np.save(temporary, coords)
