"""The packed activations of a data set, mapped from disk."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from src.data.packed_index import INDEX_FILE, digest_coords, read_index
from src.data.shards import REPACK, ShardedRows, coords_path, map_shard, shard_path
from src.files import digest_array, digest_text

VERIFY = ("index", "full")


class ActivationStore:
    """Activations of many slides, packed into shards that are mapped read-only.

    Rows are numbered through all shards. A store may hold slides that this object was not asked for, and rows whose
    slide was packed anew, so row numbers may have gaps: `row_ranges` and `row_ids` are the way to rows. What is on
    disk is only ever added to, never changed, so a store that is open stays valid while others append to it. Pickled,
    it is its path, and is mapped again by whom it is sent to.

    Attributes:
        path: the folder, made by `src.data.packing.pack_activations`.
        index: of the slides asked for, by row: item_id, start, stop (rows), digest (of the slide's float32 values),
            stored_digest (of the values as stored: another one only where float16 was forced on float32 files),
            coords_digest ('' without coords), coords_missing (why there are none), patch_size_level0 (0: not stated),
            and the file they came from: path, bytes, mtime_ns.

    Args:
        path: the folder.
        verify: `index` checks that index and shards agree in size; `full` also reads every row and compares digests.
        item_ids: the slides to show; all by default. Those that were not packed are left out (see `present`).

    Raises:
        FileNotFoundError: when the index or a shard is missing.
        ValueError: when a shard is cut short, shards and index do not agree, or a digest is another one.
    """

    def __init__(self, path: str | Path, verify: str = "index", item_ids: Iterable[str] | None = None) -> None:
        if verify not in VERIFY:
            raise ValueError(f"Expected verify to be one of {VERIFY}, got {verify!r}.")
        self.path = Path(path)
        index = read_index(self.path)
        if item_ids is not None:
            index = index.loc[index["item_id"].isin(list(item_ids))].reset_index(drop=True)
        self._show(index)
        if verify == "full":
            self._compare_digests()

    def _show(self, index: pd.DataFrame) -> None:
        self.index = index
        n_rows = int(index["stop"].to_numpy().max(initial=1))
        self._rows = _map_shards(self.path, shard_path, ("float16", "float32"), n_rows)
        self._coords = _map_shards(self.path, coords_path, ("int32",), n_rows)
        self._row_range = {
            str(item_id): (int(start), int(stop))
            for item_id, start, stop in zip(index["item_id"], index["start"], index["stop"], strict=True)
        }
        self._digest = dict(zip(self._row_range, index["digest"].astype(str), strict=True))
        self._coords_digest = dict(zip(self._row_range, index["coords_digest"].astype(str), strict=True))
        self._patch_size = dict(zip(self._row_range, index["patch_size_level0"].tolist(), strict=True))

    @property
    def d_in(self) -> int:
        """The width of the activations."""
        return self._rows.d_in

    @property
    def dtype(self) -> np.dtype:
        """The type on disk: float16 or float32."""
        return self._rows.dtype

    @property
    def n_rows(self) -> int:
        """The rows of all shards; every row number lies below. Those of the slides asked for are `row_ids`."""
        return len(self._rows)

    @property
    def item_ids(self) -> list[str]:
        """The slides, in the order of their rows."""
        return list(self._row_range)

    @property
    def identity(self) -> str:
        """A digest of slides, row ranges and values: equal where row numbers mean the same rows."""
        columns = ["item_id", "start", "stop", "stored_digest"]
        return digest_text(self.index[columns].to_csv(index=False, lineterminator="\n"))

    def read(self, start: int, stop: int) -> np.ndarray:
        """Returns rows [stop - start, d_in] as stored: a read-only view where one shard holds them, else a copy.

        Raises:
            ValueError: when there are no such rows.
        """
        return self._rows.read(start, stop)

    def gather(self, row_ids: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Returns rows by number, in any order and with repeats.

        Args:
            row_ids: [n] integers.
            out: filled and returned when given: [n, d_in], C-contiguous, float32 or the stored type. When the rows lie
                in one shard, or ascend, and the types agree, nothing but `out` is written to.

        Returns:
            [n, d_in] float32, or `out`.

        Raises:
            ValueError: when a row does not exist or `out` does not fit.
        """
        row_ids = np.asarray(row_ids)
        if out is None:
            out = np.empty((len(row_ids), self.d_in), dtype=np.float32)
        self._rows.gather(row_ids, out)
        return out

    def present(self, item_ids: Iterable[str]) -> list[str]:
        """Returns those of `item_ids` that were packed; the others were skipped as bad or missing, and logged."""
        return [item_id for item_id in item_ids if item_id in self._row_range]

    def row_ranges(self, item_ids: Iterable[str]) -> list[tuple[int, int]]:
        """Returns (start, stop) of the rows of each slide.

        Raises:
            ValueError: when a slide was not packed.
        """
        return [self._row_range[item_id] for item_id in self._known(item_ids)]

    def row_ids(self, item_ids: Iterable[str]) -> np.ndarray:
        """Returns the numbers of all rows of the slides, in the order given: [n] int64.

        Raises:
            ValueError: when a slide was not packed.
        """
        ranges = [np.arange(start, stop) for start, stop in self.row_ranges(item_ids)]
        return np.concatenate(ranges) if ranges else np.empty(0, dtype=np.int64)

    def rows(self, item_id: str) -> np.ndarray:
        """Returns a slide's activations [n_patches, d_in] float32: a read-only view where the store allows it.

        Raises:
            ValueError: when the slide was not packed.
        """
        ((start, stop),) = self.row_ranges([item_id])
        return self.read(start, stop).astype(np.float32, copy=False)

    def coords(self, item_id: str) -> np.ndarray | None:
        """Returns where a slide's patches lie, as `Bag` has it: [n_patches, 2] int32, read-only.

        None where its file holds none; `coords_missing` of the index says why.

        Raises:
            ValueError: when the slide was not packed.
        """
        ((start, stop),) = self.row_ranges([item_id])
        return self._coords.read(start, stop) if self._coords_digest[item_id] else None

    def patch_size_level0(self, item_id: str) -> int | None:
        """Returns the edge of a slide's patches in level-0 pixels; None where its file does not state it.

        Raises:
            ValueError: when the slide was not packed.
        """
        (known,) = self._known([item_id])
        return self._patch_size[known] or None

    def digest(self, item_id: str) -> str:
        """Returns the digest of a slide's activations.

        Raises:
            ValueError: when the slide was not packed.
        """
        (known,) = self._known([item_id])
        return self._digest[known]

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "index": self.index}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # With the index of the sender: the one on disk may list other rows of a slide by now, these are still there.
        self.path = state["path"]
        self._show(state["index"])

    def _known(self, item_ids: Iterable[str]) -> list[str]:
        item_ids = list(item_ids)
        if missing := [item_id for item_id in item_ids if item_id not in self._row_range]:
            raise ValueError(
                f"Expected slides among the {len(self._row_range)} of {self.path}, got {missing[:5]} "
                f"({len(missing)} unknown): they had no usable feature file. Extract them (task=embed) or take them "
                "out of the split."
            )
        return item_ids

    def _compare_digests(self) -> None:
        for item_id, start, stop, expected in zip(
            self.index["item_id"], self.index["start"], self.index["stop"], self.index["stored_digest"], strict=True
        ):
            found = digest_array(self.read(start, stop))
            in_place = self._coords_digest[item_id]
            if in_place and (of_coords := digest_coords(self._coords.read(start, stop))) != in_place:
                raise ValueError(
                    f"Expected the coords of slide {item_id} ({start} to {stop} in {self.path}) to digest to "
                    f"{in_place}, got {of_coords}: they changed on disk. {REPACK}"
                )
            if found != expected:
                numbers = [number for number, _ in self._rows.parts(start, stop)]
                files = ", ".join(shard_path(self.path, number).name for number in numbers)
                raise ValueError(
                    f"Expected the rows of slide {item_id} ({start} to {stop}, in {files} of {self.path}) to digest "
                    f"to {expected}, got {found}: they changed on disk. {REPACK}"
                )


def _map_shards(path: Path, path_of: Callable[[Path, int], Path], dtypes: tuple[str, ...], n_rows: int) -> ShardedRows:
    """Maps as many shards as hold `n_rows`; later ones are still being packed."""
    shards: list[np.ndarray] = []
    held = 0
    while held < n_rows:
        file = path_of(path, len(shards))
        if shards and not file.exists():
            raise ValueError(
                f"Expected {n_rows} rows in {path_of(path, 0).name} and the files after it in {path}, as {INDEX_FILE} "
                f"says, got {held} in {len(shards)}. {REPACK}"
            )
        shard = map_shard(file, dtypes)
        if shards and (shard.shape[1], shard.dtype) != (shards[0].shape[1], shards[0].dtype):
            raise ValueError(
                f"Expected {shards[0].shape[1]} values of {shards[0].dtype} a row in {file}, as in the other shards, "
                f"got {shard.shape[1]} of {shard.dtype}. {REPACK}"
            )
        shards.append(shard)
        held += len(shard)
    return ShardedRows(shards)
