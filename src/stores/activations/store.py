"""The packed activations of a data set, mapped from disk."""

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from src.activation_spec import ActivationSpec
from src.stores.activations.index import REPACK, IndexRow, add_spec, coords_path, index_specs, read_index, shard_path


class ActivationStore:
    """Activations of many items, packed into shards that are mapped read-only.

    Rows are numbered through the shards that hold the items shown. A shard may hold items that this object was not
    asked for, and rows whose item was packed anew, so row numbers may have gaps: `row_ranges` and `row_ids` are the way
    to rows. What is on disk is only ever added to, never changed, so a store that is open stays valid while others
    append to it. Pickled, it is its path and index, and is mapped again by whom it is sent to.

    Attributes:
        path: the folder, made by `src.stores.activations.writer.StoreWriter`.
        index: what the store's tables say of each item shown, by id.
        dtype: of `read`: float16 where all shards are, else float32.
        spec: what the activations are of; unknown where no file says.

    Args:
        path: the folder.
        item_ids: the items to show; all by default. Those that were not packed are left out (see `present`).

    Raises:
        FileNotFoundError: when the index or a shard is missing.
        ValueError: when a shard is cut short, shards and index do not agree, none of the items is there, or items are
            of different specs.
    """

    def __init__(self, path: str | Path, item_ids: Iterable[str] | None = None) -> None:
        index = read_index(Path(path))
        if not index:
            raise FileNotFoundError(f"Expected index_*.csv in {path}, found none: it is no packed store.")
        if item_ids is not None:
            shown = set(item_ids)
            index = {item_id: row for item_id, row in index.items() if item_id in shown}
            if not index:
                raise ValueError(f"Expected some of the items that are asked for in {path}, found none.")
        stated: dict[ActivationSpec, str] = {}
        for spec, source in index_specs(Path(path), index.values()).items():
            add_spec(stated, spec, source)
        self.spec = ActivationSpec()
        for spec in stated:
            self.spec = self.spec.filled(spec)
        self.path, self.index = Path(path), index
        self._map()

    def _map(self) -> None:
        self._shards: list[np.ndarray] = []
        places = np.array([(row.shard, row.start, row.stop) for row in self.index.values()])
        owners, starts, stops = places.T
        numbers, within = np.unique(owners, return_inverse=True)
        n_needed = np.zeros(len(numbers), np.int64)
        np.maximum.at(n_needed, within, stops)
        for number, n_rows in zip(numbers.tolist(), n_needed.tolist(), strict=True):
            path = shard_path(self.path, number)
            rows = map_shard(path)
            if len(rows) < n_rows:
                raise ValueError(
                    f"Expected at least {n_rows} rows in {path}, as its index says, got {len(rows)}. {REPACK}"
                )
            self._shards.append(rows)
            if rows.shape[1] != self.d_in:
                raise ValueError(
                    f"Expected {self.d_in} values a row in {path}, as in the other shards, got {rows.shape[1]}. "
                    f"{REPACK}"
                )
        # float16 where all shards are, else float32, which holds both
        self.dtype = np.result_type(*(rows.dtype for rows in self._shards))
        self._firsts = np.cumsum([0, *map(len, self._shards)])
        self._starts, self._stops = self._firsts[within] + starts, self._firsts[within] + stops
        self._position = {item_id: position for position, item_id in enumerate(self.index)}

    @cached_property
    def _coords(self) -> dict[int, np.ndarray]:
        """The mapped coords [n_rows, 2] of the shards that have any, by the shard's number."""
        numbers = {row.shard for row in self.index.values() if row.coords_digest}
        return {number: map_shard(coords_path(self.path, number), ("int32",)) for number in numbers}

    @property
    def n_rows(self) -> int:
        """The rows of all shards; every row number lies below. Those of the items shown are `row_ids`."""
        return int(self._firsts[-1])

    @property
    def d_in(self) -> int:
        """The width of the activations."""
        return self._shards[0].shape[1]

    @property
    def item_ids(self) -> list[str]:
        """The items, in the order of the index."""
        return list(self._position)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Returns rows [stop - start, d_in] as stored: a read-only view where one shard holds them, else a copy.

        Raises:
            ValueError: when there are no such rows.
        """
        self._check_range(start, stop)
        number = max(0, int(np.searchsorted(self._firsts, start, side="right")) - 1)
        parts = []
        while start < stop:
            first, last = int(self._firsts[number]), int(self._firsts[number + 1])
            parts.append(self._shards[number][start - first : min(stop, last) - first])
            start, number = last, number + 1
        if len(parts) == 1:
            return parts[0].astype(self.dtype, copy=False)
        return np.concatenate(parts, dtype=self.dtype) if parts else self._shards[0][:0]

    def gather(self, row_ids: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Returns rows by number, in any order and with repeats.

        Args:
            row_ids: [n] integers.
            out: filled and returned when given: [n, d_in], C-contiguous, float32 or the stored type. When the rows lie
                in one shard and the types agree, nothing but `out` is written to.

        Returns:
            [n, d_in] float32, or `out`.

        Raises:
            ValueError: when a row does not exist or `out` does not fit.
        """
        row_ids = np.asarray(row_ids)
        if out is None:
            out = np.empty((len(row_ids), self.d_in), dtype=np.float32)
        if out.shape != (len(row_ids), self.d_in) or not out.flags.c_contiguous:
            raise ValueError(f"Expected a C-contiguous buffer {(len(row_ids), self.d_in)}, got {out.shape}.")
        if not len(row_ids):
            return out
        self._check_range(int(row_ids.min()), int(row_ids.max()) + 1)
        owners = np.searchsorted(self._firsts, row_ids, side="right") - 1
        numbers = np.unique(owners)
        if len(numbers) == 1 and self._shards[numbers[0]].dtype == out.dtype:
            # "clip" writes to `out` directly, "raise" through a copy; the numbers are checked.
            return np.take(self._shards[numbers[0]], row_ids - self._firsts[numbers[0]], axis=0, out=out, mode="clip")
        for number in numbers:
            places = owners == number
            out[places] = self._shards[number][row_ids[places] - self._firsts[number]]
        return out

    def present(self, item_ids: Iterable[str]) -> list[str]:
        """Returns those of `item_ids` that were packed; the others were skipped as bad or missing, and logged."""
        return [item_id for item_id in item_ids if item_id in self._position]

    def row_ranges(self, item_ids: Iterable[str]) -> list[tuple[int, int]]:
        """Returns (start, stop) of the rows of each item.

        Raises:
            ValueError: when an item was not packed.
        """
        positions = self._positions(item_ids)
        return list(zip(self._starts[positions].tolist(), self._stops[positions].tolist(), strict=True))

    def row_ids(self, item_ids: Iterable[str]) -> np.ndarray:
        """Returns the numbers of all rows of the items, in the order given: [n] int64.

        Raises:
            ValueError: when an item was not packed.
        """
        ranges = [np.arange(start, stop) for start, stop in self.row_ranges(item_ids)]
        return np.concatenate(ranges) if ranges else np.empty(0, dtype=np.int64)

    def rows(self, item_id: str) -> np.ndarray:
        """Returns an item's activations [n_rows, d_in] float32: a read-only view where the store allows it.

        Raises:
            ValueError: when the item was not packed.
        """
        ((start, stop),) = self.row_ranges([item_id])
        return self.read(start, stop).astype(np.float32, copy=False)

    def coords(self, item_id: str) -> np.ndarray | None:
        """Returns where an item's patches lie, as `ItemRows` has it: [n_rows, 2] int32, read-only.

        None where its file holds none; `coords_missing` of the index says why.

        Raises:
            ValueError: when the item was not packed.
        """
        row = self._row(item_id)
        return self._coords[row.shard][row.start : row.stop] if row.coords_digest else None

    def patch_size_level0(self, item_id: str) -> int | None:
        """Returns the edge of an item's patches in level-0 pixels; None where its file does not state it.

        Raises:
            ValueError: when the item was not packed.
        """
        return self._row(item_id).patch_size_level0 or None

    def digest(self, item_id: str) -> str:
        """Returns the digest of an item's activations.

        Raises:
            ValueError: when the item was not packed.
        """
        return self._row(item_id).digest

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "index": self.index, "spec": self.spec}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # With the index of the sender: the one on disk may list other rows of an item by now, these are still there.
        self.__dict__.update(state)
        self._map()

    def _row(self, item_id: str) -> IndexRow:
        self._positions([item_id])
        return self.index[item_id]

    def _positions(self, item_ids: Iterable[str]) -> list[int]:
        item_ids = list(item_ids)
        if missing := [item_id for item_id in item_ids if item_id not in self._position]:
            raise ValueError(
                f"Expected items among the {len(self._position)} of {self.path}, got {missing[:5]} "
                f"({len(missing)} unknown): they had no usable feature file. Extract them (task=embed) or take them "
                "out of the split."
            )
        return [self._position[item_id] for item_id in item_ids]

    def _check_range(self, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= self.n_rows:
            raise ValueError(f"Expected rows among the {self.n_rows} of the store, got {start} to {stop}.")


def map_shard(path: Path, dtypes: tuple[str, ...] = ("float16", "float32")) -> np.ndarray:
    """Maps a shard, or the coords of one, read-only: [n_rows, d_in].

    Raises:
        FileNotFoundError, ValueError: when the file is missing, empty, cut short or no shard.
    """
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"Expected the shard {path}, found no such file. {REPACK}") from error
    except (ValueError, EOFError) as error:
        found = f"{path.stat().st_size:,} bytes that do not hold one ({error})"
        raise ValueError(f"Expected a whole shard at {path}, got {found}. {REPACK}") from error
    if rows.ndim != 2 or rows.dtype.name not in dtypes:
        raise ValueError(
            f"Expected rows [n, d_in] of {' or '.join(dtypes)} in {path}, got {rows.shape} of {rows.dtype}. {REPACK}"
        )
    # A plain array keeps the map open just as well, and indexes faster than numpy's subclass.
    return np.asarray(rows)
