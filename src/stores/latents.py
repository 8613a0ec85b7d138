"""Sparse latents on disk: one h5 a slide, and an index that appears when all are written."""

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import torch

from src.files import list_files, remove_leftovers, write_atomically
from src.ops.sparse_latents import SparseLatents
from src.stores.latent_file import LatentPieces, SlideFacts, is_whole, read_pieces

INDEX_COLUMNS = ("item_id", "n_patches", "n_nonzero", "path", "digest")
_ORIGIN_FILE = "made_by.json"
_FORMAT = 1


@dataclass(frozen=True)
class StoredLatents:
    """The latents of one slide: a row a patch, with the patches' level-0 coords [n_patches, 2] when known."""

    latents: SparseLatents
    coords: np.ndarray | None
    patch_size_level0: int | None


class LatentWriter:
    """Writes a store of latents slide by slide: `<path>/h5_files/<item_id>.h5`, then `<path>/index.csv`.

    A file holds the non-zero latents in CSR form: `row_offsets` int64 [n_patches + 1], `neuron_ids` in the smallest
    unsigned type that holds n_latents and `values` float32 [n_nonzero], `coords` int32 [n_patches, 2] when known;
    attributes n_latents, patch_size_level0 (when known) and digest (of the activations). Arrays are contiguous and not
    compressed: at 16 of 2048 latents that is 112 bytes a patch, against 8 KiB dense; lzf saves a fifth of it and gzip a
    quarter, for 15 and 45 times the writing time (measured on random ids and values).

    The index is written last, so a store without one is unfinished, and one that is begun anew loses its index first.
    Slides of an unfinished store that were made by the same SAE may be kept, see `keeps`; others are removed.

    Args:
        path: the folder of the store; nobody else may be writing there.
        n_latents: the SAE's number of latents.
        made_by: a digest of the SAE. Without one, nothing that lies there is kept.
    """

    def __init__(self, path: str | Path, n_latents: int, made_by: str = "") -> None:
        self.path = Path(path)
        self.n_latents = n_latents
        self._records: dict[str, tuple[int, int, str, str]] = {}
        folder = self.path / "h5_files"
        folder.mkdir(parents=True, exist_ok=True)
        (self.path / "index.csv").unlink(missing_ok=True)
        for place in (self.path, folder):
            remove_leftovers(place)
        origin = {"format": _FORMAT, "n_latents": n_latents, "sae": made_by}
        if not made_by or _read_origin(self.path) != origin:
            (self.path / _ORIGIN_FILE).unlink(missing_ok=True)
            for file in list_files(folder):
                file.unlink()
            with write_atomically(self.path / _ORIGIN_FILE) as temporary:
                temporary.write_text(json.dumps(origin) + "\n")

    def keeps(self, item_id: str, n_patches: int, facts: SlideFacts) -> bool:
        """Whether the store holds the latents of a slide already, whole and of these activations; then keeps them."""
        name = f"h5_files/{item_id}.h5"
        if not is_whole(self.path / name, self.n_latents, n_patches, facts):
            return False
        with h5py.File(self.path / name, "r") as file:
            values: Any = file["values"]
            self._records[item_id] = (n_patches, len(values), name, facts.digest)
        return True

    def kept(self, item_id: str, n_rows: int) -> Iterator[SparseLatents]:
        """Yields the latents of a slide that is written or kept, `n_rows` rows at a time."""
        return read_pieces(self.path / "h5_files" / f"{item_id}.h5", n_rows)

    @contextmanager
    def slide(self, item_id: str, facts: SlideFacts) -> Iterator[LatentPieces]:
        """Takes the latents of a slide piece by piece, and writes them when the block ends, whole or not at all.

        Raises:
            ValueError: when latents or coords have another shape than the store's and each other's.
            OSError: when the disk is full, saying what was needed; neither the file nor the index is left.
        """
        name = f"h5_files/{item_id}.h5"
        with closing(LatentPieces(self.path, self.n_latents)) as pieces:
            try:
                yield pieces
                if facts.coords is not None and facts.coords.shape != (pieces.n_rows, 2):
                    raise ValueError(
                        f"Expected coords of shape ({pieces.n_rows}, 2) of slide {item_id}, got {facts.coords.shape}."
                    )
                if shutil.disk_usage(self.path).free < pieces.n_bytes:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                with write_atomically(self.path / name) as temporary:
                    pieces.save(temporary, facts)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                free = shutil.disk_usage(self.path).free
                raise OSError(
                    error.errno,
                    f"{error.strerror or error} The latents of slide {item_id} need {pieces.n_bytes / 1e6:.1f} MB, "
                    f"{free / 1e6:.1f} MB are free.",
                ) from error
            self._records[item_id] = (pieces.n_rows, pieces.n_entries, name, facts.digest)

    def write(
        self,
        item_id: str,
        latents: SparseLatents,
        coords: np.ndarray | None = None,
        patch_size_level0: int | None = None,
        digest: str = "",
    ) -> None:
        """Writes the latents of a slide, whole or not at all.

        Args:
            item_id: the slide.
            latents: [n_patches, n_latents].
            coords: [n_patches, 2] level-0 pixels.
            patch_size_level0: the patches' edge in level-0 pixels.
            digest: of the activations that were encoded.

        Raises:
            ValueError, OSError: as `slide`.
        """
        if latents.n_latents != self.n_latents:
            raise ValueError(
                f"Expected {self.n_latents} latents for {self.path}, got {latents.n_latents} of slide {item_id}."
            )
        with self.slide(item_id, SlideFacts(coords, patch_size_level0, digest)) as pieces:
            pieces.append(latents)

    def finish(self) -> "LatentStore":
        """Writes the index, which makes the store readable, and returns the store.

        Raises:
            ValueError: when no slide was written.
        """
        if not self._records:
            raise ValueError(f"Expected latents of at least one slide in {self.path}, got none.")
        rows = [(item_id, *record) for item_id, record in sorted(self._records.items())]
        for file in list_files(self.path / "h5_files"):
            if file.name.removesuffix(".h5") not in self._records:  # of a slide that the data set no longer has
                file.unlink()
        with write_atomically(self.path / "index.csv") as temporary:
            pd.DataFrame(rows, columns=list(INDEX_COLUMNS)).to_csv(temporary, index=False)
        return LatentStore(self.path)


class LatentStore:
    """Reads a store of latents.

    Attributes:
        index: item_id, n_patches, n_nonzero, path (below the store's), digest (of the activations).

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
        self.index = pd.read_csv(index, dtype={"item_id": str, "path": str, "digest": str}, keep_default_na=False)
        files = zip(self.index["item_id"], self.index["path"], strict=True)
        self._file = {str(item_id): self.path / str(file) for item_id, file in files}
        self._n_patches = dict(zip(self._file, (int(n) for n in self.index["n_patches"]), strict=True))
        self._digest = dict(zip(self._file, (str(digest) for digest in self.index["digest"]), strict=True))
        self._n_latents: int | None = None

    @property
    def item_ids(self) -> list[str]:
        """The slides, sorted."""
        return list(self._file)

    @property
    def n_latents(self) -> int:
        """The number of latents; read from the first slide's file."""
        if self._n_latents is None:
            with h5py.File(self._known(self.item_ids[0]), "r") as file:
                self._n_latents = _integer(file.attrs["n_latents"])
        return self._n_latents

    def n_patches(self, item_id: str) -> int:
        """Returns the number of rows of a slide, from the index."""
        self._known(item_id)
        return self._n_patches[item_id]

    def digest(self, item_id: str) -> str:
        """Returns the digest of the activations that a slide's latents were encoded from."""
        self._known(item_id)
        return self._digest[item_id]

    def read(self, item_id: str) -> StoredLatents:
        """Reads the latents of a slide.

        Raises:
            ValueError: when the store does not hold the slide, or its file is damaged.
        """
        path = self._known(item_id)
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

    def pieces(self, item_id: str, n_rows: int) -> Iterator[SparseLatents]:
        """Yields the latents of a slide, `n_rows` rows at a time, for slides of any size."""
        return read_pieces(self._known(item_id), n_rows)

    def _known(self, item_id: str) -> Path:
        if item_id not in self._file:
            raise ValueError(
                f"Expected a slide among the {len(self._file)} of {self.path}, got {item_id!r}: "
                "encode it (task=encode) or take it out of the split."
            )
        return self._file[item_id]


def _integer(attribute: Any) -> int:
    return int(attribute)


def _read_origin(path: Path) -> Any:
    """Returns what the files of a store were made by; None when it does not say, or no longer."""
    try:
        return json.loads((path / _ORIGIN_FILE).read_text())
    except (FileNotFoundError, ValueError):
        return None
