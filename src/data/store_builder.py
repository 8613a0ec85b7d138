"""Carries out one packing: plan, rows, journal, index."""

import logging
import os
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import numpy as np
import pandas as pd

from src.data.packed_index import (
    INDEX_FILE,
    Identity,
    add_skipped,
    digest_coords,
    read_index,
    replace_slides,
    slide_identities,
    write_index,
)
from src.data.packing_plan import Journal, Packed, Place, Plan, read_journal, read_plan, remove_plan
from src.data.readers.feature_source import FeatureSource
from src.data.readers.features import FeatureFolder
from src.data.shard_writer import ShardWriter, rows_per_shard
from src.data.shards import coords_path, map_shard, shard_path
from src.data.slide_packer import pack_slides
from src.files import digest_array, remove_leftovers

_LOGGER = logging.getLogger(__name__)
_MOST_THREADS = 8


def pack_into(
    folder: FeatureFolder,
    sources: Mapping[str, FeatureSource],
    identities: Mapping[str, Identity],
    path: Path,
    dtype: np.dtype,
    n_threads: int | None = None,
) -> None:
    """Packs slides into the store at `path`, whose lock the caller holds.

    Args:
        folder: where the features are.
        sources: the slides that the store lacked when the caller looked.
        identities: of their files, taken before their headers were read.
        path: the store.
        dtype: of the values on disk.
        n_threads: that read and write; by default one a core, at most 8.

    Raises:
        FeatureFileError, ValueError, OSError: as `src.data.packing.pack_activations`.
    """
    remove_leftovers(path)
    index = read_index(path) if (path / INDEX_FILE).is_file() else None
    known = {} if index is None else slide_identities(index)
    todo = {item_id: source for item_id, source in sources.items() if known.get(item_id) != identities[item_id]}
    if not todo:
        _LOGGER.info("Another process packed %s meanwhile; using its store.", path)
        return
    for item_id in todo:
        if item_id in known:
            _LOGGER.warning(
                "%s (slide %s) changed since it was packed: packing it anew; its old rows in %s are left out.",
                folder.file(item_id), item_id, path,
            )  # fmt: skip
    plan = read_plan(path) or _begin_plan(path)
    done = {
        packed.item_id: packed
        for packed in read_journal(path)
        if packed.item_id in plan.places and plan.places[packed.item_id].start == packed.start
    }
    for item_id in todo:
        if item_id in plan.places and plan.places[item_id].identity != identities[item_id]:
            del plan.places[item_id]
            done.pop(item_id, None)
    unplanned = {item_id: source for item_id, source in todo.items() if item_id not in plan.places}
    plan.add(unplanned, identities, rows_per_shard(folder.d_in, dtype))
    plan.write(path)
    started = time.monotonic()
    with _shards(path, plan, folder.d_in, dtype) as shards, _coords(path, plan) as coords:
        done = _still_good(done, plan, shards, coords)
        if done:
            _LOGGER.info("Going on with an unfinished packing: %d slides are in %s already.", len(done), path)
        rest = {item_id: source for item_id, source in sorted(todo.items()) if item_id not in done}
        batches = pack_slides(folder, rest, plan.places, shards, coords, n_threads or _n_cores())
        with closing(Journal(path)) as journal, closing(batches):
            for batch in batches:
                journal.add(batch)
                done |= {packed.item_id: packed for packed in batch}
    bad = {item_id: folder.skipped[item_id] for item_id in rest if item_id in folder.skipped}
    add_skipped(path, bad, identities)
    if done:
        new = pd.DataFrame([_row(packed, plan.places[packed.item_id]) for packed in done.values()])
        write_index(path, replace_slides(index, new))
    remove_plan(path)
    n_bytes = sum(source.n_patches * source.d_in for source in rest.values()) * dtype.itemsize
    seconds = time.monotonic() - started
    _LOGGER.info("Packed %d slides (%.0f MB) into %s in %.1f s.", len(rest), n_bytes / 1e6, path, seconds)


def _shards(path: Path, plan: Plan, d_in: int, dtype: np.dtype) -> ShardWriter:
    paths = [shard_path(path, plan.first_shard + number) for number in range(len(plan.sizes))]
    return ShardWriter(paths, plan.first_row, plan.sizes, d_in, dtype)


def _coords(path: Path, plan: Plan) -> ShardWriter:
    paths = [coords_path(path, plan.first_shard + number) for number in range(len(plan.sizes))]
    # Not reserved: images of a tensor have none, and their files stay empty on disk.
    return ShardWriter(paths, plan.first_row, plan.sizes, 2, np.dtype(np.int32), reserve=False)


def _begin_plan(path: Path) -> Plan:
    """Returns an empty plan behind the shards there are."""
    n_shards = n_rows = 0
    while shard_path(path, n_shards).exists():
        n_rows += len(map_shard(shard_path(path, n_shards)))
        n_shards += 1
    return Plan(n_shards, n_rows)


def _still_good(done: Mapping[str, Packed], plan: Plan, shards: ShardWriter, coords: ShardWriter) -> dict[str, Packed]:
    """Returns the journalled slides whose rows digest to what the journal says.

    After a kill all do: the kernel keeps what a dead process wrote, and the journal is written after the rows. After a
    power cut the journal may have reached the disk and the rows not, so they are read once more, at a fraction of what
    packing them costs.
    """
    good = {}
    for item_id, packed in done.items():
        place = plan.places[item_id]
        is_placed = not packed.coords_digest or (
            digest_coords(coords.read(place.start, place.stop)) == packed.coords_digest
        )
        if is_placed and digest_array(shards.read(place.start, place.stop)) == packed.stored_digest:
            good[item_id] = packed
        else:
            _LOGGER.warning("The rows of slide %s did not reach the disk; they are not used.", item_id)
    return good


def _row(packed: Packed, place: Place) -> dict[str, str | int]:
    return vars(place) | vars(packed)


def _n_cores() -> int:
    n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(_MOST_THREADS, n_cores)
