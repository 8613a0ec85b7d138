"""The latents of a store sorted by neuron, most active first, so that "where does it fire" is a seek."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from src.files import write_atomically
from src.stores.latents.index import BY_NEURON_FILE, NEURON_OFFSETS_FILE

# A number of 64 bits that sorts as wanted and is, once its upper half is inverted back, this pair in memory.
ENTRY = np.dtype([("row", "<u4"), ("value", "<f4")])
_KEY = np.dtype("<u8")
_UPPER = np.uint64(0xFFFFFFFF << 32)
_PIECE_ENTRIES = 1 << 19  # put in place at once: about 60 bytes each


class Piece(NamedTuple):
    """Some rows of a store: the row of each entry [n] uint32, its neuron [n], and its value [n] float32."""

    rows: np.ndarray
    neuron_ids: np.ndarray
    values: np.ndarray


def write_by_neuron(path: Path, counts: np.ndarray, pieces: Callable[[int], Iterator[Piece]]) -> None:
    """Writes `by_neuron.npy`: row and value of every entry, by neuron, then falling value, then row.

    `by_neuron_offsets.npy` [n_latents + 1] says where each neuron begins. The entries are put where they belong and
    sorted in the mapped file itself, so that memory is bounded by a piece whatever the store holds.

    Args:
        path: the store's folder.
        counts: entries of each neuron [n_latents].
        pieces: yields all entries by row, in pieces of about so many entries.

    Raises:
        OSError: when the disk is full, saying what was needed.
    """
    offsets = np.concatenate([[0], counts.cumsum()])
    with write_atomically(path / BY_NEURON_FILE, int(offsets[-1]) * ENTRY.itemsize) as temporary:
        _write_zeros(temporary, int(offsets[-1]))
        if offsets[-1]:
            # As a plain array, which is cut much faster.
            keys = np.asarray(np.load(temporary, mmap_mode="r+")).view(_KEY)
            _fill(keys, offsets, pieces(_PIECE_ENTRIES))
    with write_atomically(path / NEURON_OFFSETS_FILE) as temporary:
        np.save(temporary, offsets)


def _fill(keys: np.ndarray, offsets: np.ndarray, pieces: Iterator[Piece]) -> None:
    places = offsets[:-1].copy()
    for piece in pieces:
        order = piece.neuron_ids.argsort(kind="stable")
        counts = np.bincount(piece.neuron_ids, minlength=len(places))
        targets = np.repeat(places - (counts.cumsum() - counts), counts) + np.arange(len(order))
        # Values are not negative, and the bits of such floats sort as they do.
        entries = np.empty(len(order), ENTRY)
        entries["row"], entries["value"] = piece.rows[order], piece.values[order]
        keys[targets] = entries.view(_KEY) ^ _UPPER
        places += counts
    for start, stop in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        keys[start:stop].sort()
        keys[start:stop] ^= _UPPER


def _write_zeros(path: Path, n_entries: int) -> None:
    """Takes the space before the file is mapped: a mapped file that finds the disk full ends the process."""
    with open(path, "wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(ENTRY), "fortran_order": False, "shape": (n_entries,)}
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, n_entries, _PIECE_ENTRIES):
            file.write(bytes(ENTRY.itemsize * min(_PIECE_ENTRIES, n_entries - start)))
