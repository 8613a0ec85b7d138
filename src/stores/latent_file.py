"""The latents of one slide in an h5 file, written and read in pieces of rows, so that memory is bounded."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Any

import h5py
import numpy as np
import torch

from src.ops.sparse_latents import SparseLatents

# Up to this size a slide's latents are gathered in memory, which most slides' are; larger ones wait on disk.
_IN_MEMORY_BYTES = 32 << 20
_PIECE_BYTES = 8 << 20


@dataclass(frozen=True)
class SlideFacts:
    """What a file says of its slide beside the latents.

    Attributes:
        coords: [n_patches, 2] level-0 pixels, None when not known.
        patch_size_level0: the patches' edge in level-0 pixels, None when not known.
        digest: of the activations that were encoded.
    """

    coords: np.ndarray | None = None
    patch_size_level0: int | None = None
    digest: str = ""


class LatentPieces:
    """The latents of a slide, gathered piece by piece.

    Args:
        folder: where what does not fit into memory waits, in files without a name that vanish with the process.
        n_latents: of the SAE.
    """

    def __init__(self, folder: Path, n_latents: int) -> None:
        self.n_latents = n_latents
        self.n_rows = self.n_entries = 0
        id_type = np.min_scalar_type(n_latents - 1)
        self._dtypes = {"neuron_ids": id_type, "values": np.dtype(np.float32)}
        self._spools = {
            name: SpooledTemporaryFile(_IN_MEMORY_BYTES // 2, dir=str(folder))  # noqa: SIM115 closed by `close`
            for name in self._dtypes
        }
        self._offsets = [np.zeros(1, dtype=np.int64)]

    @property
    def n_bytes(self) -> int:
        """What the arrays take on disk, coords aside."""
        return 8 * (self.n_rows + 1) + self.n_entries * sum(dtype.itemsize for dtype in self._dtypes.values())

    def append(self, latents: SparseLatents) -> None:
        """Adds rows [n, n_latents].

        Raises:
            ValueError: when they have another number of latents.
            OSError: when the disk is full.
        """
        if latents.n_latents != self.n_latents:
            raise ValueError(f"Expected {self.n_latents} latents, got {latents.n_latents}.")
        arrays = {"neuron_ids": latents.neuron_ids, "values": latents.values.detach()}
        for name, array in arrays.items():
            self._spools[name].write(array.cpu().numpy().astype(self._dtypes[name], copy=False).tobytes())
        self._offsets.append(latents.row_offsets[1:].cpu().numpy() + self.n_entries)
        self.n_rows += latents.n_rows
        self.n_entries += latents.n_entries

    def save(self, path: Path, facts: SlideFacts) -> None:
        """Writes the file.

        Raises:
            OSError: when the disk is full.
        """
        if self.n_bytes <= _IN_MEMORY_BYTES:
            # Written in one go, a full disk is one plain error and not HDF5's at closing.
            buffer = io.BytesIO()
            with h5py.File(buffer, "w") as file:
                self._fill(file, facts)
            path.write_bytes(buffer.getvalue())
            return
        with h5py.File(path, "w") as file:
            self._fill(file, facts)

    def close(self) -> None:
        """Frees memory and disk."""
        for spool in self._spools.values():
            spool.close()

    def _fill(self, file: h5py.File, facts: SlideFacts) -> None:
        file["row_offsets"] = np.concatenate(self._offsets)
        for name, dtype in self._dtypes.items():
            dataset = file.create_dataset(name, (self.n_entries,), dtype)
            spool, step = self._spools[name], _PIECE_BYTES // dtype.itemsize
            spool.seek(0)
            for start in range(0, self.n_entries, step):
                stop = min(start + step, self.n_entries)
                dataset[start:stop] = np.frombuffer(spool.read((stop - start) * dtype.itemsize), dtype)
        if facts.coords is not None:
            file["coords"] = facts.coords.astype(np.int32)
        file.attrs["n_latents"] = self.n_latents
        if facts.patch_size_level0 is not None:
            file.attrs["patch_size_level0"] = facts.patch_size_level0
        file.attrs["digest"] = facts.digest


def is_whole(path: Path, n_latents: int, n_rows: int, facts: SlideFacts) -> bool:
    """Whether a file is there and holds the latents of these rows of this slide."""
    if not path.is_file():
        return False
    try:
        with h5py.File(path, "r") as file:
            stored: Any = file
            offsets, attributes = stored["row_offsets"][()], dict(stored.attrs)
            coords = stored["coords"][()] if "coords" in stored else None
            lengths = {len(stored[name]) for name in ("neuron_ids", "values")}
    except (OSError, RuntimeError, KeyError):  # cut by a power cut; what is not whole is made again
        return False
    size = attributes.get("patch_size_level0")
    if coords is None or facts.coords is None:
        is_same_place = coords is None and facts.coords is None
    else:
        is_same_place = np.array_equal(coords, facts.coords)
    return (
        is_same_place
        and (attributes.get("n_latents"), attributes.get("digest")) == (n_latents, facts.digest)
        and (None if size is None else int(size)) == facts.patch_size_level0
        and len(offsets) == n_rows + 1
        and lengths == {int(offsets[-1])}
    )


def read_pieces(path: Path, n_rows: int) -> Iterator[SparseLatents]:
    """Yields the latents of a file, `n_rows` rows at a time; the last piece may have fewer."""
    with h5py.File(path, "r") as file:
        stored: Any = file
        offsets, n_latents = stored["row_offsets"][()], int(stored.attrs["n_latents"])
        for start in range(0, len(offsets) - 1, n_rows):
            within = offsets[start : start + n_rows + 1]
            entries = slice(int(within[0]), int(within[-1]))
            yield SparseLatents(
                torch.from_numpy(within - within[0]),
                torch.from_numpy(stored["neuron_ids"][entries].astype(np.int32)),
                torch.from_numpy(stored["values"][entries]),
                (len(within) - 1, n_latents),
            )
