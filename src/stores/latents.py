"""Sparse latents on disk: one h5 a slide, and an index that appears when all are written."""

import io
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import torch

from src.files import write_atomically
from src.ops.sparse_latents import SparseLatents

INDEX_COLUMNS = ("slide_id", "n_patches", "n_nonzero", "path", "digest")


@dataclass(frozen=True)
class StoredLatents:
    """The latents of one slide: a row a patch, with the patches' level-0 coords [n_patches, 2] when known."""

    latents: SparseLatents
    coords: np.ndarray | None
    patch_size_level0: int | None


class LatentWriter:
    """Writes a store of latents slide by slide: `<path>/h5_files/<slide_id>.h5`, then `<path>/index.csv`.

    A file holds the non-zero latents in CSR form: `row_offsets` int64 [n_patches + 1], `neuron_ids` in the smallest
    unsigned type that holds n_latents and `values` float32 [n_nonzero], `coords` int32 [n_patches, 2] when known;
    attributes n_latents, patch_size_level0 (when known) and digest (of the activations). Arrays are contiguous and not
    compressed: at 16 of 2048 latents that is 112 bytes a patch, against 8 KiB dense; lzf saves a fifth of it and gzip a
    quarter, for 15 and 45 times the writing time (measured on random ids and values).

    The index is written last, so a store without one is unfinished, and one that is begun anew loses its index first.

    Args:
        path: the folder of the store.
        n_latents: the SAE's number of latents.
    """

    def __init__(self, path: str | Path, n_latents: int) -> None:
        self.path = Path(path)
        self.n_latents = n_latents
        self._records: dict[str, tuple[int, int, str, str]] = {}
        (self.path / "h5_files").mkdir(parents=True, exist_ok=True)
        (self.path / "index.csv").unlink(missing_ok=True)

    def write(
        self,
        slide_id: str,
        latents: SparseLatents,
        coords: np.ndarray | None = None,
        patch_size_level0: int | None = None,
        digest: str = "",
    ) -> None:
        """Writes the latents of a slide, whole or not at all.

        Args:
            slide_id: the slide.
            latents: [n_patches, n_latents].
            coords: [n_patches, 2] level-0 pixels.
            patch_size_level0: the patches' edge in level-0 pixels.
            digest: of the activations that were encoded.

        Raises:
            ValueError: when latents or coords have another shape than the store's and each other's.
            OSError: when the disk is full, saying what was needed; neither the file nor the index is left.
        """
        n_patches, n_latents = latents.shape
        if n_latents != self.n_latents:
            raise ValueError(f"Expected {self.n_latents} latents for {self.path}, got {n_latents} of slide {slide_id}.")
        if coords is not None and coords.shape != (n_patches, 2):
            raise ValueError(f"Expected coords of shape ({n_patches}, 2) of slide {slide_id}, got {coords.shape}.")
        name = f"h5_files/{slide_id}.h5"
        content = _to_h5(latents, coords, patch_size_level0, digest)
        try:
            with write_atomically(self.path / name) as temporary:
                temporary.write_bytes(content)
        except OSError as error:
            free = shutil.disk_usage(self.path).free
            raise OSError(
                error.errno,
                f"{error.strerror or error} The latents of slide {slide_id} need {len(content) / 1e6:.1f} MB, "
                f"{free / 1e6:.1f} MB are free.",
            ) from error
        self._records[slide_id] = (n_patches, len(latents.values), name, digest)

    def finish(self) -> "LatentStore":
        """Writes the index, which makes the store readable, and returns the store.

        Raises:
            ValueError: when no slide was written.
        """
        if not self._records:
            raise ValueError(f"Expected latents of at least one slide in {self.path}, got none.")
        rows = [(slide_id, *record) for slide_id, record in sorted(self._records.items())]
        with write_atomically(self.path / "index.csv") as temporary:
            pd.DataFrame(rows, columns=list(INDEX_COLUMNS)).to_csv(temporary, index=False)
        return LatentStore(self.path)


class LatentStore:
    """Reads a store of latents.

    Attributes:
        index: slide_id, n_patches, n_nonzero, path (below the store's), digest (of the activations).

    Args:
        path: the folder, written by `LatentWriter`.

    Raises:
        FileNotFoundError: when there is no finished store.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        index = self.path / "index.csv"
        if not index.is_file():
            raise FileNotFoundError(
                f"Expected a finished store of latents at {self.path}, found no index.csv: make it with task=encode."
            )
        self.index = pd.read_csv(index, dtype={"slide_id": str, "path": str, "digest": str}, keep_default_na=False)
        files = zip(self.index["slide_id"], self.index["path"], strict=True)
        self._file = {str(slide_id): self.path / str(file) for slide_id, file in files}
        self._n_patches = dict(zip(self._file, (int(n) for n in self.index["n_patches"]), strict=True))
        self._digest = dict(zip(self._file, (str(digest) for digest in self.index["digest"]), strict=True))
        self._n_latents: int | None = None

    @property
    def slide_ids(self) -> list[str]:
        """The slides, sorted."""
        return list(self._file)

    @property
    def n_latents(self) -> int:
        """The number of latents; read from the first slide's file."""
        if self._n_latents is None:
            with h5py.File(self._known(self.slide_ids[0]), "r") as file:
                self._n_latents = _integer(file.attrs["n_latents"])
        return self._n_latents

    def n_patches(self, slide_id: str) -> int:
        """Returns the number of rows of a slide, from the index."""
        self._known(slide_id)
        return self._n_patches[slide_id]

    def digest(self, slide_id: str) -> str:
        """Returns the digest of the activations that a slide's latents were encoded from."""
        self._known(slide_id)
        return self._digest[slide_id]

    def read(self, slide_id: str) -> StoredLatents:
        """Reads the latents of a slide.

        Raises:
            ValueError: when the store does not hold the slide, or its file is damaged.
        """
        path = self._known(slide_id)
        try:
            with h5py.File(path, "r") as file:
                arrays = {name: np.asarray(file[name]) for name in file}
                attributes = dict(file.attrs)
        except (OSError, RuntimeError) as error:
            raise ValueError(f"Expected readable latents at {path}, got {error}. Run task=encode again.") from error
        row_offsets = torch.from_numpy(arrays["row_offsets"])
        # torch indexes with int32 or int64 only; int32 halves the reading and holds every count of latents.
        neuron_ids = torch.from_numpy(arrays["neuron_ids"].astype(np.int32))
        shape = (len(row_offsets) - 1, _integer(attributes["n_latents"]))
        latents = SparseLatents(row_offsets, neuron_ids, torch.from_numpy(arrays["values"]), shape)
        size = attributes.get("patch_size_level0")
        return StoredLatents(latents, arrays.get("coords"), None if size is None else _integer(size))

    def _known(self, slide_id: str) -> Path:
        if slide_id not in self._file:
            raise ValueError(
                f"Expected a slide among the {len(self._file)} of {self.path}, got {slide_id!r}: "
                "encode it (task=encode) or take it out of the split."
            )
        return self._file[slide_id]


def _integer(attribute: Any) -> int:
    return int(attribute)


def _to_h5(latents: SparseLatents, coords: np.ndarray | None, patch_size_level0: int | None, digest: str) -> bytes:
    """Returns the file in memory: written in one go, a full disk is one plain error and not HDF5's at closing."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file["row_offsets"] = latents.row_offsets.cpu().numpy()
        file["neuron_ids"] = latents.neuron_ids.cpu().numpy().astype(np.min_scalar_type(latents.shape[1] - 1))
        file["values"] = latents.values.detach().to(torch.float32).cpu().numpy()
        if coords is not None:
            file["coords"] = coords.astype(np.int32)
        file.attrs["n_latents"] = latents.shape[1]
        if patch_size_level0 is not None:
            file.attrs["patch_size_level0"] = patch_size_level0
        file.attrs["digest"] = digest
    return buffer.getvalue()
