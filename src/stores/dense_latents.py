"""Latents as dense features in CLAM's layout, for programs that read nothing else."""

from collections.abc import Iterable
from pathlib import Path

import h5py
import numpy as np
import torch

from src.files import write_atomically
from src.progress import track
from src.stores.latents import LatentStore, StoredLatents


def export_dense(store: LatentStore, path: str | Path, formats: Iterable[str] = ("h5", "pt")) -> None:
    """Writes latents as dense float32 features in CLAM's layout.

    Args:
        store: the latents.
        path: gets `h5_files/<item_id>.h5` (`features` in chunks of 32 rows, `coords`) and `pt_files/<item_id>.pt`.
        formats: `h5`, `pt` or both. A slide takes 4 n_patches n_latents bytes in each.

    Raises:
        ValueError: when a format is neither.
    """
    formats = tuple(formats)
    if unknown := set(formats) - {"h5", "pt"}:
        raise ValueError(f"Expected formats h5 and pt, got {sorted(unknown)}.")
    for item_id in track(store.item_ids, "Writing dense latents"):
        stored = store.read(item_id)
        features = stored.latents.to_dense()
        if "h5" in formats:
            with write_atomically(Path(path) / "h5_files" / f"{item_id}.h5") as temporary:
                _write_clam_h5(temporary, features.numpy(), stored)
        if "pt" in formats:
            with write_atomically(Path(path) / "pt_files" / f"{item_id}.pt") as temporary:
                torch.save(features, temporary)


def _write_clam_h5(path: Path, features: np.ndarray, stored: StoredLatents) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("features", data=features, chunks=(min(32, len(features)), features.shape[1]))
        if stored.coords is not None:
            file["coords"] = stored.coords
        if stored.patch_size_level0 is not None:
            file.attrs["patch_size_level0"] = stored.patch_size_level0
