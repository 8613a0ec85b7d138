"""Shards of latents: safetensors files, written from pieces, mapped, and read by row number."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from src.files import write_atomically
from src.ops.sparse_latents import SparseLatents
from src.stores.latents.by_neuron import Piece

_ALIGNMENT = 8
_COUNTED_AT_ONCE = 1 << 20  # entries, which are copied for it as int64
_TYPES = {"uint8": "U8", "uint16": "U16", "uint32": "U32", "int32": "I32", "int64": "I64", "float32": "F32"}


def write_shard(path: Path, arrays: Mapping[str, Sequence[np.ndarray]]) -> None:
    """Writes arrays, each given in pieces along its first axis, whole or not at all.

    The pieces go to the file one by one: the library would join them, and copy each array once more.

    Raises:
        OSError: when the disk is full, saying what was needed.
    """
    header, position = {}, 0
    # Wide types first, so that each array begins at a multiple of its item.
    arrays = dict(sorted(arrays.items(), key=lambda named: -named[1][0].itemsize))
    for name, pieces in arrays.items():
        n_bytes = sum(piece.nbytes for piece in pieces)
        header[name] = {
            "dtype": _TYPES[pieces[0].dtype.name],
            "shape": [sum(map(len, pieces)), *pieces[0].shape[1:]],
            "data_offsets": [position, position + n_bytes],
        }
        position += n_bytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with write_atomically(path, len(text) + position, durable=True) as temporary, open(temporary, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for pieces in arrays.values():
            for piece in pieces:
                file.write(np.ascontiguousarray(piece).data)


def map_shard(path: Path) -> dict[str, np.ndarray]:
    """Maps the arrays of a file that `write_shard` wrote; not to be changed.

    Raises:
        ValueError: when it is missing or damaged.
    """
    names = {code: name for name, code in _TYPES.items()}
    try:
        data = np.memmap(path, np.uint8, "r")
        start = 8 + int.from_bytes(data[:8].tobytes(), "little")
        header = json.loads(data[8:start].tobytes())
        return {
            name: data[start:][slice(*entry["data_offsets"])].view(names[entry["dtype"]]).reshape(entry["shape"])
            for name, entry in header.items()
        }
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"Expected readable latents at {path}, got {error}. Run task=encode again.") from error


class Shards:
    """The rows of all shards of a store. A shard is mapped when it is asked for.

    Args:
        path: the folder.
        shards: (file, its first row), in the order of the rows.
        n_latents: of the SAE.
    """

    def __init__(self, path: Path, shards: Sequence[tuple[str, int]], n_latents: int) -> None:
        self._path, self._shards, self._n_latents = path, list(shards), n_latents
        self._firsts = np.array([first for _, first in shards], np.int64)
        self._mapped: dict[int, dict[str, np.ndarray]] = {}

    def rows(self, numbers: np.ndarray) -> SparseLatents:
        """Returns rows by ascending number [n], copied."""
        pieces = [self._gather(shard, within) for shard, within in self._by_shard(numbers)]
        counts, neuron_ids, values = (np.concatenate(arrays) for arrays in zip(*pieces, strict=True))
        return SparseLatents(
            torch.from_numpy(np.concatenate([[0], counts.cumsum()])),
            torch.from_numpy(neuron_ids),
            torch.from_numpy(values),
            (len(numbers), self._n_latents),
        )

    def coords(self, numbers: np.ndarray) -> np.ndarray | None:
        """Returns coords [n, 2] of rows by number, in any order; None where not all are known."""
        coords = np.empty((len(numbers), 2), np.int32)
        of_shard = np.searchsorted(self._firsts, numbers, side="right") - 1
        for shard in np.unique(of_shard):
            if "coords" not in (arrays := self._map(int(shard))):
                return None
            rows = of_shard == shard
            coords[rows] = arrays["coords"][numbers[rows] - self._firsts[shard]]
        return None if (coords < 0).any() else coords

    def neuron_counts(self) -> np.ndarray:
        """Returns the number of entries of each neuron [n_latents] int64."""
        counts = np.zeros(self._n_latents, np.int64)
        for shard in range(len(self._shards)):
            neuron_ids = self._map(shard)["neuron_ids"]
            for start in range(0, len(neuron_ids), _COUNTED_AT_ONCE):
                counts += np.bincount(neuron_ids[start : start + _COUNTED_AT_ONCE], minlength=self._n_latents)
        return counts

    def pieces(self, n_entries: int) -> Iterator[Piece]:
        """Yields all entries, by row, about `n_entries` at a time."""
        for shard, first in enumerate(self._firsts):
            arrays = self._map(shard)
            offsets = arrays["row_offsets"]
            for start in range(0, int(offsets[-1]), n_entries):
                stop = min(start + n_entries, int(offsets[-1]))
                from_row, to_row = np.searchsorted(offsets, [start, stop - 1], side="right").tolist()
                counts = np.diff(offsets[from_row - 1 : to_row + 1].clip(start, stop))
                rows = np.repeat(np.arange(first + from_row - 1, first + to_row, dtype=np.uint32), counts)
                cut = slice(start, stop)
                yield Piece(rows, np.array(arrays["neuron_ids"][cut]), arrays["values"][cut])

    def _map(self, shard: int) -> dict[str, np.ndarray]:
        if shard not in self._mapped:
            self._mapped[shard] = map_shard(self._path / self._shards[shard][0])
        return self._mapped[shard]

    def _by_shard(self, numbers: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        bounds = [*np.searchsorted(numbers, self._firsts), len(numbers)]
        for shard, first in enumerate(self._firsts):
            if bounds[shard] < bounds[shard + 1] or shard == 0:  # an empty request has a type too
                yield shard, numbers[bounds[shard] : bounds[shard + 1]] - first

    def _gather(self, shard: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns the number of entries of each row of a shard, their neurons and values."""
        arrays = self._map(shard)
        offsets = arrays["row_offsets"]
        starts = offsets[rows]
        counts = offsets[rows + 1] - starts
        if len(rows) and rows[-1] - rows[0] == len(rows) - 1:
            entries = slice(int(starts[0]), int(starts[-1] + counts[-1]))
        else:
            entries = np.repeat(starts - (counts.cumsum() - counts), counts) + np.arange(counts.sum())
        # torch indexes with int32 or int64 only; int32 halves the reading and holds every count of latents.
        return counts, arrays["neuron_ids"][entries].astype(np.int32), np.array(arrays["values"][entries])
