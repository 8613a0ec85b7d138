"""Writes a store of latents, row by row, so that a killed writing goes on."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import numpy as np

from src.activation_spec import ActivationSpec
from src.files import digest_text, list_files, remove_leftovers, write_atomically
from src.ops.sparse_latents import SparseLatents
from src.stores.latents.by_neuron import write_by_neuron
from src.stores.latents.index import (
    BY_NEURON_FILE,
    FORMAT,
    HEAD_FILE,
    ITEMS_FILE,
    NEURON_OFFSETS_FILE,
    LatentItem,
    write_index,
)
from src.stores.latents.shards import Shards, map_shard, write_shard
from src.stores.latents.store import LatentStore

SHARD_BYTES = 256 << 20
_ORIGIN_FILE = "made_by.txt"
_MOST_ROWS = 1 << 32


class LatentWriter:
    """Takes the latents of all rows in order, and writes them to `shard_<n>.safetensors` and an index.

    A shard holds consecutive rows in CSR form: `row_offsets` int64 [n_rows + 1], `neuron_ids` in the smallest unsigned
    type that holds n_latents, `values` float32, and `coords` int32 [n_rows, 2] where items have any (-1: this one
    not). Uncompressed arrays can be mapped, and a file is one step of a killed and resumed writing, however many items
    there are; safetensors is the format that is both and that others read. A row's token is its place in its item.

    Shards that lie there already are kept when they were made by the same SAE from the same items; `n_kept_rows` says
    how many rows they hold. The index is written last: a store without one is unfinished.

    Args:
        path: the folder of the store; nobody else may be writing there.
        n_latents: of the SAE.
        items: what is to be encoded, in order; their `start` is counted anew.
        made_by: whatever shapes the values beside the items. Without it nothing is kept.
        sae: digest of the SAE, for the index.
        spec: of the activations, for the index.

    Raises:
        ValueError: when there are no items, or more rows than can be counted.
    """

    def __init__(
        self,
        path: str | Path,
        n_latents: int,
        items: Sequence[LatentItem],
        made_by: str = "",
        sae: str = "",
        spec: ActivationSpec | None = None,
    ) -> None:
        self.path, self.n_latents, self.sae, self.spec = Path(path), n_latents, sae, spec or ActivationSpec()
        self._items = list(items)
        self.n_rows = sum(item.n_rows for item in items)
        if not 0 < self.n_rows <= _MOST_ROWS:
            raise ValueError(f"Expected 1 to {_MOST_ROWS:,} rows of items to encode, got {self.n_rows:,}.")
        self._id_type = np.min_scalar_type(n_latents - 1)
        self._begin(made_by)
        self._shards, self.n_kept_rows = self._whole_shards()
        self._kept = Shards(self.path, self._shards, n_latents)
        self._n_seen = self._n_written = self.n_kept_rows
        self._forget()

    def kept(self, start: int, stop: int) -> SparseLatents:
        """Returns rows below `n_kept_rows`."""
        return self._kept.rows(np.arange(start, stop))

    def append(self, latents: SparseLatents, coords: np.ndarray | None = None, first: int | None = None) -> None:
        """Takes the next rows.

        Args:
            latents: [n, n_latents].
            coords: [n, 2] level-0 pixels, -1 where not known; None where no item has any.
            first: the number of the first one, which may have been taken already; by default the next.

        Raises:
            ValueError: when the shapes do not fit.
            OSError: when the disk is full, saying what was needed.
        """
        if latents.n_latents != self.n_latents:
            raise ValueError(f"Expected {self.n_latents} latents for {self.path}, got {latents.n_latents}.")
        if coords is not None and coords.shape != (latents.n_rows, 2):
            raise ValueError(f"Expected coords of shape ({latents.n_rows}, 2), got {coords.shape}.")
        offsets = latents.row_offsets.cpu().numpy().astype(np.int64, copy=False)
        ids = latents.neuron_ids.cpu().numpy().astype(self._id_type, copy=False)
        values = latents.values.detach().float().cpu().numpy()
        row_bytes = 8 + (0 if coords is None else 8)
        sizes = row_bytes * np.arange(1, len(offsets)) + (4 + self._id_type.itemsize) * (offsets[1:] - offsets[0])
        start = 0 if first is None else self._n_seen - first
        while start < latents.n_rows:
            done = sizes[start - 1] if start else 0
            # Where a shard ends depends on its rows alone, not on the pieces that they come in.
            stop = int(np.searchsorted(sizes, done + SHARD_BYTES - self._n_bytes, side="right"))
            stop = max(stop, start if self._n_bytes else start + 1)
            if stop > start:
                entries = slice(int(offsets[start]), int(offsets[stop]))
                self._pieces["row_offsets"].append(offsets[start + 1 : stop + 1] - offsets[start] + self._n_entries)
                self._pieces["neuron_ids"].append(ids[entries])
                self._pieces["values"].append(values[entries])
                if coords is not None:
                    self._pieces.setdefault("coords", []).append(coords[start:stop].astype(np.int32))
                self._n_entries += entries.stop - entries.start
                self._n_bytes += int(sizes[stop - 1] - done)
                self._n_seen += stop - start
            if stop < latents.n_rows:
                self._write_shard()
            start = stop

    def finish(self, by_neuron: bool = True) -> LatentStore:
        """Writes the last shard, the entries by neuron and the index, and returns the store.

        Raises:
            ValueError: when rows are missing.
            OSError: when the disk is full, saying what was needed.
        """
        if self._n_seen != self.n_rows:
            raise ValueError(f"Expected the latents of {self.n_rows} rows for {self.path}, got {self._n_seen}.")
        if self._n_seen > self._n_written:
            self._write_shard()
        if by_neuron:
            shards = Shards(self.path, self._shards, self.n_latents)
            write_by_neuron(self.path, shards.neuron_counts(), shards.pieces)
        starts = accumulate((item.n_rows for item in self._items), initial=0)
        items = [
            replace(item, start=start, patch_size_level0=item.patch_size_level0 or 0)
            for item, start in zip(self._items, starts, strict=False)
        ]
        write_index(self.path, self.n_latents, self.sae, self.spec, self._shards, items)
        return LatentStore(self.path)

    def _begin(self, made_by: str) -> None:
        """Makes the folder an unfinished store of these latents."""
        self.path.mkdir(parents=True, exist_ok=True)
        for name in (HEAD_FILE, ITEMS_FILE, BY_NEURON_FILE, NEURON_OFFSETS_FILE):
            (self.path / name).unlink(missing_ok=True)
        remove_leftovers(self.path)
        facts = [(item.item_id, item.n_rows, item.digest) for item in self._items]
        origin = digest_text(repr((FORMAT, self.n_latents, SHARD_BYTES, made_by, facts)))
        path = self.path / _ORIGIN_FILE
        if not made_by or not path.is_file() or path.read_text() != origin:
            for file in list_files(self.path, "shard_*"):
                file.unlink()
            with write_atomically(path) as temporary:
                temporary.write_text(origin)

    def _whole_shards(self) -> tuple[list[tuple[str, int]], int]:
        """Finds the shards of a killed writing up to the first that is missing or damaged; counts their rows.

        Removes the others.
        """
        shards, n_rows = [], 0
        while n_rows < self.n_rows and (path := self.path / _shard_name(len(shards))).is_file():
            try:
                shard_rows = len(map_shard(path)["row_offsets"]) - 1
            except ValueError:  # cut by a power cut; what is not whole is made again
                break
            shards.append((path.name, n_rows))
            n_rows += shard_rows
        for file in list_files(self.path, "shard_*")[len(shards) :]:
            file.unlink()
        return shards, n_rows

    def _write_shard(self) -> None:
        if "coords" in self._pieces and sum(map(len, self._pieces["coords"])) != self._n_seen - self._n_written:
            raise ValueError(f"Expected coords of all rows or of none for {self.path}, got those of some.")
        name = _shard_name(len(self._shards))
        write_shard(self.path / name, self._pieces)
        self._shards.append((name, self._n_written))
        self._n_written = self._n_seen
        self._forget()

    def _forget(self) -> None:
        self._pieces: dict[str, list[np.ndarray]] = {"row_offsets": [np.zeros(1, np.int64)]}
        self._pieces |= {"neuron_ids": [], "values": []}
        self._n_entries = self._n_bytes = 0


def _shard_name(number: int) -> str:
    return f"shard_{number:05d}.safetensors"
