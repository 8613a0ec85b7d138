"""Packs the features of many slides into one store, once, and adds to it afterwards."""

import errno
import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from src.data.activation_store import ActivationStore
from src.data.packed_index import INDEX_FILE, Identity, read_index, read_skipped, slide_identities
from src.data.readers.feature_source import FeatureSource
from src.data.readers.features import FeatureFolder
from src.data.store_builder import pack_into
from src.file_lock import wait_for_lock
from src.files import digest_text

__all__ = ["ActivationStore", "pack_activations"]

_LOGGER = logging.getLogger(__name__)
_FORMAT = 3
"""Enters the key: a store of another format is never reused."""
_LOCK_FILE = ".lock"
DTYPES = ("float16", "float32")


def pack_activations(
    folder: FeatureFolder,
    item_ids: Iterable[str],
    cache_dir: str | Path,
    *,
    dtype: str | None = None,
    verify: str = "index",
    n_threads: int | None = None,
) -> ActivationStore:
    """Packs those slides that the store of this folder lacks, and returns the store, showing the slides asked for.

    A folder of features has one store, `<cache_dir>/<key>/{shard_00000.npy..., coords_00000.npy..., index.csv}`, keyed
    by its path, the width of its features and the type; each slide in it by path, size and time of change of its file.
    So reuse costs one `stat` a slide, new slides are added in new shards, and a changed file is packed anew, with a
    warning, its old rows left out of the index. A fresh store has its rows in the order of the sorted slide ids.

    One pass: places are known from the headers; threads read, check, digest and write. A plan lies on disk before the
    first row and a journal names each slide after its rows; a start after a kill finishes the plan, packing only what
    the journal lacks. The index is written last, so a store is never seen half. One process packs at a time; others
    wait and then use what it packed. Rows are not forced to the disk: after a power cut, unlike after a kill, an index
    may promise rows that never got there, which `verify=full` tells.

    Slides that `folder` skips are not in the store (see `ActivationStore.present`).

    Args:
        folder: where the features are.
        item_ids: the slides that are needed.
        cache_dir: where packed stores are kept; safe to delete.
        dtype: `float16` or `float32`; by default float16 when the files of all these slides hold that. Forcing float16
            on float32 files rounds them.
        verify: see `ActivationStore`.
        n_threads: that read and write; by default one a core, at most 8.

    Raises:
        FileNotFoundError, FeatureFileError: for missing and bad files, unless `folder` skips them.
        ValueError: when no slide is left, a file changes while it is packed, or the store is damaged.
        OSError: when the disk is full or the cache cannot be written; what was packed is kept for the next start.
    """
    if dtype not in (None, *DTYPES):
        raise ValueError(f"Expected dtype to be one of {DTYPES} or None, got {dtype!r}.")
    wanted = sorted(set(item_ids))
    if folder.on_bad_file == "skip":
        folder.sources(item_id for item_id in wanted if item_id not in folder.paths)
    if all(item_id in folder.skipped for item_id in wanted):
        raise ValueError(f"Expected at least one usable slide in {folder.path}, got none: {folder.skipped}.")
    path, stored, identities, sources = _choose_store(folder, wanted, Path(cache_dir), dtype)
    if sources:
        with _explain(path, sources, stored), wait_for_lock(path / _LOCK_FILE, "packing"):
            pack_into(folder, sources, identities, path, stored, n_threads)
    shown = [item_id for item_id in wanted if item_id not in folder.skipped]
    if not shown or not (path / INDEX_FILE).is_file():
        raise ValueError(f"Expected at least one usable slide in {folder.path}, got none: {folder.skipped}.")
    store = ActivationStore(path, verify, shown)
    if sources:
        _warn_of_twins(store)
    return store


def _choose_store(
    folder: FeatureFolder, wanted: list[str], cache_dir: Path, dtype: str | None
) -> tuple[Path, np.dtype, dict[str, Identity], dict[str, FeatureSource]]:
    """Returns the folder of the store, its type, and identities and sources of the slides that it lacks."""
    identities = {item_id: folder.identity(item_id) for item_id in wanted if item_id not in folder.skipped}
    stores = {name: cache_dir / _key(folder, name) for name in (DTYPES if dtype is None else (dtype,))}
    for name, path in stores.items():
        _repeat_skipped(folder, identities, path)
        if not _lacking(folder, identities, path, dtype):
            return path, np.dtype(name), {}, {}
    if dtype is not None:
        lacking = folder.sources(_lacking(folder, identities, stores[dtype], dtype))
        return stores[dtype], np.dtype(dtype), identities, lacking
    sources = folder.sources(identities)
    name = "float16" if all(source.dtype == np.float16 for source in sources.values()) else "float32"
    lacking = {item_id: sources[item_id] for item_id in _lacking(folder, identities, stores[name], dtype)}
    return stores[name], np.dtype(name), identities, lacking


def _key(folder: FeatureFolder, dtype: str) -> str:
    """Returns the name of a store: 32 hex digits."""
    return digest_text(json.dumps([_FORMAT, str(folder.path.resolve()), folder.d_in, dtype]))


def _lacking(folder: FeatureFolder, identities: Mapping[str, Identity], path: Path, dtype: str | None) -> list[str]:
    """Returns the slides that the store at `path` does not hold as their files are now."""
    known: dict[str, Identity] = {}
    if (path / INDEX_FILE).is_file():
        index = read_index(path)
        if dtype is None:  # rounded values are for those only who asked for them
            index = index.loc[index["digest"] == index["stored_digest"]]
        known = slide_identities(index)
    return [
        item_id
        for item_id, identity in identities.items()
        if item_id not in folder.skipped and known.get(item_id) != identity
    ]


@contextmanager
def _explain(path: Path, sources: Mapping[str, FeatureSource], dtype: np.dtype) -> Iterator[None]:
    """Says of a full disk and of a read-only cache what to do about them."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            needed = sum(source.n_patches * source.d_in for source in sources.values()) * dtype.itemsize
            raise OSError(
                error.errno,
                f"Could not pack {len(sources)} slides into {path}: {reason}. They need {needed / 1e6:.0f} MB, "
                f"{shutil.disk_usage(path.parent).free / 1e6:.0f} MB are free. Free space and start again, which goes "
                "on with the slides that are missing; or delete the folder and give another paths.cache.",
            ) from error
        file = path if error.filename is None else Path(os.fsdecode(error.filename))
        of_cache = file in path.parents or file.is_relative_to(path.parent)
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) and of_cache:
            raise OSError(
                error.errno,
                f"Expected to write packed activations to {path}, got {reason}: {len(sources)} slides are not packed "
                "there. Give a paths.cache that can be written; a store that holds all slides is also read from one "
                "that cannot.",
            ) from error
        raise


def _repeat_skipped(folder: FeatureFolder, identities: Mapping[str, Identity], path: Path) -> None:
    """Skips again what reading showed to be bad before, when the files are still those."""
    if folder.on_bad_file != "skip":
        return
    skipped = read_skipped(path)
    known = slide_identities(skipped)
    for item_id, reason in zip(skipped["item_id"], skipped["reason"], strict=True):
        if item_id not in folder.skipped and known[item_id] == identities.get(item_id):
            folder.skip(str(item_id), str(reason))


def _warn_of_twins(store: ActivationStore) -> None:
    """Warns of slides with equal activations: copies, or bags so tiny that they agree by chance. They are kept."""
    slides_of: dict[str, list[str]] = {}
    for item_id in store.item_ids:
        slides_of.setdefault(store.digest(item_id), []).append(item_id)
    for item_ids in slides_of.values():
        if len(item_ids) > 1:
            ((start, stop),) = store.row_ranges(item_ids[:1])
            _LOGGER.warning(
                "The activations of %s are equal (%d patches): one slide under several names leaks when a split "
                "separates them; bags of a few patches may agree by chance.",
                ", ".join(item_ids),
                stop - start,
            )
