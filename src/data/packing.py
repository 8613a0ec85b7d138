"""Packs the activations that a reader finds into one store, once, and adds to it afterwards."""

import errno
import json
import logging
import os
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from src.data.readers.feature_reader import FeatureReader
from src.data.readers.packed_folder import PackedFolder
from src.file_lock import wait_for_lock
from src.files import digest_text
from src.progress import track
from src.stores.activations.index import (
    Identity,
    add_skipped,
    add_spec,
    index_specs,
    read_index,
    read_skipped,
)
from src.stores.activations.store import ActivationStore
from src.stores.activations.writer import StoreWriter

_LOGGER = logging.getLogger(__name__)
_FORMAT = 5
"""Enters the key: a store of another format is never reused."""
_LOCK_FILE = ".lock"
_CACHE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)


def pack_activations(reader: FeatureReader, item_ids: Iterable[str], cache_dir: str | Path) -> ActivationStore:
    """Packs those items that the store of this reader lacks, and returns the store, showing the items asked for.

    A reader has one store, `<cache_dir>/<key>/{shard_00000.npy, coords_00000.npy, index_00000.csv, ...}`, keyed by its
    path and the width of its activations; each item in it by path, size and time of change of its file. So reuse costs
    one `stat` an item, new items are added in new shards, and a changed file is packed anew, with a warning, its old
    rows left out of the index. float16 stays float16, all else is float32.

    A shard is written whole and renamed, so a start after a kill packs only what no shard holds. One process packs at a
    time; others wait and then use what it packed. Large shards are not forced to the disk: after a power cut, unlike
    after a kill, an index may promise rows that never got there: delete the folder then.

    Items that the reader skips are not in the store (see `ActivationStore.present`).

    Args:
        reader: where the activations are.
        item_ids: the items that are needed.
        cache_dir: where packed stores are kept; safe to delete.

    Raises:
        FileNotFoundError, FeatureFileError: for missing and bad files, unless they are skipped.
        ValueError: when no item is left, items are of different specs, a file changes while it is packed, or the store
            is damaged.
        OSError: when the disk is full or the cache cannot be written; what was packed is kept for the next start.
    """
    if isinstance(reader, PackedFolder):
        return reader.store(item_ids)
    identities: dict[str, Identity] = {}
    for item_id in sorted(set(item_ids) - reader.skipped.keys()):
        with reader.skipping(item_id):
            identities[item_id] = reader.identity(item_id)
    if not identities:
        raise ValueError(f"Expected at least one usable item in {reader.path}, got none: {reader.skipped}.")
    key = digest_text(json.dumps([_FORMAT, str(reader.path.resolve()), reader.d_in]))
    path = Path(cache_dir) / key
    is_packed = not _lacking(reader, identities, path)
    if not is_packed:
        with _explained(reader, identities, path), wait_for_lock(path / _LOCK_FILE, "packing"):
            _pack(reader, identities, path)
    if not identities.keys() - reader.skipped.keys():
        raise ValueError(f"Expected at least one usable item in {reader.path}, got none: {reader.skipped}.")
    store = ActivationStore(path, identities.keys() - reader.skipped.keys())
    if not is_packed:
        _warn_of_twins(store)
    return store


def _lacking(reader: FeatureReader, identities: dict[str, Identity], path: Path) -> list[str]:
    """Returns the items that the store does not hold as their files are now, in order; skips those known to be bad."""
    known = read_index(path)
    lacking = [
        item_id
        for item_id, identity in identities.items()
        if item_id not in known or known[item_id].identity != identity
    ]
    if reader.skips:
        known_bad = read_skipped(path)
        for item_id in lacking:
            identity, reason = known_bad.get(item_id, (None, ""))
            if identity == identities[item_id] and item_id not in reader.skipped:
                reader.skip(item_id, reason)
    return [item_id for item_id in lacking if item_id not in reader.skipped]


def _pack(reader: FeatureReader, identities: dict[str, Identity], path: Path) -> None:
    lacking = _lacking(reader, identities, path)
    if not lacking:
        _LOGGER.info("Another process packed %s meanwhile; using its store.", path)
        return
    index = read_index(path)
    stated = index_specs(path, (index[item_id] for item_id in identities.keys() - lacking))
    for item_id in filter(index.__contains__, lacking):
        _LOGGER.warning("%s changed since it was packed: packing it anew in %s.", identities[item_id][0], path)
    started, n_bytes = time.monotonic(), 0
    with StoreWriter(path) as writer:
        for item_id in track(lacking, "Packing activations"):
            with reader.skipping(item_id):
                item = reader.open(item_id)
                writer.add(item, identities[item_id])
                add_spec(stated, item.spec, str(item.path))
                n_bytes += item.n_bytes
                if reader.identity(item_id) != identities[item_id]:
                    raise ValueError(
                        f"Expected {item.path} ({item_id}) to stay as it is while it is packed, got another file: "
                        "something writes it now. Let that end and start again; what was packed is kept."
                    )
    skipped = reader.skipped
    add_skipped(path, {item_id: (identities[item_id], skipped[item_id]) for item_id in lacking if item_id in skipped})
    seconds = time.monotonic() - started
    _LOGGER.info("Packed %d items (%.0f MB) into %s in %.1f s.", len(lacking), n_bytes / 1e6, path, seconds)


@contextmanager
def _explained(reader: FeatureReader, identities: dict[str, Identity], path: Path) -> Iterator[None]:
    """Says of a full disk and of a read-only cache what to do about them."""
    try:
        yield
    except OSError as error:
        file = path if error.filename is None else Path(os.fsdecode(error.filename))
        is_of_cache = file in path.parents or file.is_relative_to(path.parent)
        if error.errno not in _CACHE_ERRORS or not is_of_cache:
            raise
        lacking = _lacking(reader, identities, path)
        needed = sum(reader.open(item_id).n_bytes for item_id in lacking)
        raise OSError(
            error.errno,
            f"Could not pack {len(lacking)} items into {path}, which need {needed / 1e6:.0f} MB: {error}. Free space "
            "or give a paths.cache that can be written, and start again, which goes on with the missing items; a "
            "store that holds all items is also read from a cache that cannot be written.",
        ) from error


def _warn_of_twins(store: ActivationStore) -> None:
    """Warns of items with equal activations: copies, or bags so tiny that they agree by chance. They are kept."""
    of_digest = defaultdict(list)
    for row in store.index.values():
        of_digest[row.digest].append(row)
    for rows in filter(lambda rows: len(rows) > 1, of_digest.values()):
        _LOGGER.warning(
            "The activations of %s are equal (%d rows): one item under several names leaks when a split separates "
            "them; bags of a few patches may agree by chance.",
            ", ".join(row.item_id for row in rows),
            rows[0].stop - rows[0].start,
        )
