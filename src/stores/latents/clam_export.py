"""Latents as dense features in CLAM's layout, for programs that read nothing else."""

from collections.abc import Collection
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import h5py
import numpy as np
import torch

from src.files import write_atomically
from src.progress import track
from src.stores.latents.source import LatentSource

_PIECE_BYTES = 64 << 20
_COPIES = {"h5": 1, "pt": 2}  # that lie on the disk while a file is written


def export_clam(source: LatentSource, path: str | Path, formats: Collection[str] = ("h5", "pt")) -> None:
    """Writes latents as dense float32 features in CLAM's layout, in pieces of rows.

    Args:
        source: the latents.
        path: gets `h5_files/<item_id>.h5` (`features` in chunks of 32 rows, `coords`) and `pt_files/<item_id>.pt`.
        formats: `h5`, `pt` or both. An item takes 4 n_rows n_latents bytes in each.

    Raises:
        OSError: when the disk is full, saying what was needed.
    """
    writers = {"h5": _write_h5, "pt": _write_pt}
    for item_id in track(list(source.items), "Writing dense latents"):
        n_bytes = 4 * source.items[item_id].n_rows * source.n_latents
        for name in formats:
            file = Path(path) / f"{name}_files" / f"{item_id}.{name}"
            with write_atomically(file, n_bytes * _COPIES[name]) as temporary:
                writers[name](temporary, source, item_id)


def _write_h5(path: Path, source: LatentSource, item_id: str) -> None:
    item, coords = source.items[item_id], source.coords(item_id)
    shape = (item.n_rows, source.n_latents)
    with h5py.File(path, "w") as file:
        _fill(file.create_dataset("features", shape, np.float32, chunks=(min(32, shape[0]), shape[1])), source, item_id)
        if coords is not None:
            file["coords"] = coords
        if item.patch_size_level0 is not None:
            file.attrs["patch_size_level0"] = item.patch_size_level0


def _write_pt(path: Path, source: LatentSource, item_id: str) -> None:
    shape = (source.items[item_id].n_rows, source.n_latents)
    # A tensor over a file: torch.save writes it without a copy in memory.
    with NamedTemporaryFile(dir=path.parent, prefix=".", suffix=".partial") as raw:
        features = torch.from_file(raw.name, shared=True, size=shape[0] * shape[1]).view(shape)
        _fill(features.numpy(), source, item_id)
        with open(path, "wb") as file:  # given a path, torch.save would note its random name inside
            torch.save(features, file)


def _fill(features: Any, source: LatentSource, item_id: str) -> None:
    start = 0
    for _, latents in source.read([item_id], max(1, _PIECE_BYTES // (4 * source.n_latents))):
        features[start : start + latents.n_rows] = latents.to_dense().numpy()
        start += latents.n_rows
