"""Packs the features of many slides into one contiguous array, once, and maps it afterwards."""

import errno
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pandas as pd

from src.data.activation_store import ActivationStore
from src.data.features import FeatureFileError, FeatureFolder
from src.data.packed_index import COLUMNS, write_index
from src.files import digest_array, digest_text
from src.progress import track

__all__ = ["ActivationStore", "pack_activations"]

_LOGGER = logging.getLogger(__name__)
_FORMAT = 1
"""Enters the key: a store of another format is never reused."""
_SKIPPED_FILE = "skipped.csv"


def pack_activations(folder: FeatureFolder, slide_ids: Iterable[str], cache_dir: str | Path) -> ActivationStore:
    """Packs slides into `<cache_dir>/<key>/{activations.npy,index.csv}`, or reuses what an earlier run packed.

    The key is made of the slide ids and of the path, size and modification time of their files, so reuse costs one
    `stat` a slide and a changed file is packed anew; the index holds a digest of every slide's values. Rows are float32
    in the order of the sorted slide ids. The store is built in a temporary folder that is renamed at the end: of two
    processes that build the same key, the one that ends last discards its work and maps the other's.

    Slides that `folder` skips are not in the store (see `ActivationStore.present`).

    Args:
        folder: where the features are.
        slide_ids: the slides to pack, usually all of a data set, so that every fold shares one store.
        cache_dir: where packed stores are kept; safe to delete.

    Raises:
        FileNotFoundError, FeatureFileError: for missing and bad files, unless `folder` skips them.
        ValueError: when no slide is left.
        OSError: when the disk is full; nothing is left behind.
    """
    wanted = sorted(set(slide_ids))
    path = Path(cache_dir) / _key(folder, wanted)
    if path.is_dir():
        _repeat_skipped(folder, path)
        return ActivationStore(path)
    slide_ids = folder.usable(wanted)
    if not slide_ids:
        raise ValueError(f"Expected at least one usable slide in {folder.path}, got none: {folder.skipped}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        index = _write_rows(folder, slide_ids, building / "shard_00000.npy")
        write_index(building, index)
        skipped = [(slide_id, folder.skipped[slide_id]) for slide_id in wanted if slide_id in folder.skipped]
        pd.DataFrame(skipped, columns=["slide_id", "reason"]).to_csv(building / _SKIPPED_FILE, index=False)
        building.chmod(0o755)
        _rename_unless_there(building, path)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        needed = sum(n_patches * d_in * 4 for n_patches, d_in in map(folder.shape, slide_ids))
        raise OSError(
            error.errno,
            f"Could not pack {len(slide_ids)} slides into {path}: {error.strerror or error}. The store needs "
            f"{needed / 1e6:.0f} MB, {shutil.disk_usage(path.parent).free / 1e6:.0f} MB are free; nothing was left "
            "behind. Free space or give another paths.cache.",
        ) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
    store = ActivationStore(path)
    _warn_of_twins(store)
    return store


def _key(folder: FeatureFolder, slide_ids: list[str]) -> str:
    """Returns the name of a store: 32 hex digits over everything that decides what is in it."""
    files = []
    for slide_id in slide_ids:
        if (file := folder.paths.get(slide_id)) is None:
            files.append([slide_id])  # missing: an error, or skipped, but never the same store as without it
        else:
            status = file.stat()
            files.append([slide_id, str(file.resolve()), status.st_size, status.st_mtime_ns])
    return digest_text(json.dumps([_FORMAT, folder.on_bad_file, files]))


def _write_rows(folder: FeatureFolder, slide_ids: list[str], path: Path) -> pd.DataFrame:
    """Writes the npy file and returns its index.

    Plain writes and not a memory map: on a full disk they fail with an error, a map kills the process (SIGBUS).
    """
    records, stop = [], 0
    with open(path, "wb") as file:
        _write_header(file, 0, folder.d_in)
        for slide_id in track(slide_ids, "Packing activations"):
            try:
                features = np.ascontiguousarray(folder.read(slide_id).features)
            except FeatureFileError as error:
                if folder.on_bad_file == "error":
                    raise
                folder.skip(slide_id, str(error))
                continue
            file.write(features.data)
            start, stop = stop, stop + len(features)
            d = digest_array(features)
            records.append((slide_id, start, stop, d, d, str(folder.file(slide_id)), 0, 0))
        if not records:
            raise ValueError(f"Expected at least one readable slide in {folder.path}, got none: {folder.skipped}.")
        file.seek(0)
        _write_header(file, stop, folder.d_in)
    return pd.DataFrame(records, columns=list(COLUMNS))


def _write_header(file: BinaryIO, n_rows: int, d_in: int) -> None:
    """Writes an npy header; numpy pads it so that any number of rows gives the same length, so it can be rewritten."""
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (n_rows, d_in)})


def _rename_unless_there(building: Path, path: Path) -> None:
    try:
        os.rename(building, path)
    except OSError:
        # A folder that is there already is another process's finished store of the same key.
        if not path.is_dir():
            raise
        _LOGGER.info("Another process packed %s meanwhile; using its store.", path)


def _repeat_skipped(folder: FeatureFolder, path: Path) -> None:
    skipped = pd.read_csv(path / _SKIPPED_FILE, dtype=str, keep_default_na=False)
    for slide_id, reason in zip(skipped["slide_id"], skipped["reason"], strict=True):
        if slide_id not in folder.skipped:
            folder.skip(str(slide_id), str(reason))


def _warn_of_twins(store: ActivationStore) -> None:
    """Warns of slides with equal activations: copies, or bags so tiny that they agree by chance. They are kept."""
    slides_of: dict[str, list[str]] = {}
    for slide_id in store.slide_ids:
        slides_of.setdefault(store.digest(slide_id), []).append(slide_id)
    for slide_ids in slides_of.values():
        if len(slide_ids) > 1:
            _LOGGER.warning(
                "The activations of %s are equal (%d patches): one slide under several names leaks when a split "
                "separates them; bags of a few patches may agree by chance.",
                ", ".join(slide_ids),
                len(store.rows(slide_ids[0])),
            )
