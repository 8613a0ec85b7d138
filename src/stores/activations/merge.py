"""Takes the shards of one packed store over into another."""

import os
import shutil
from pathlib import Path

from src.files import write_atomically
from src.stores.activations.index import (
    coords_path,
    index_path,
    read_index,
    read_specs,
    remove_unlisted,
    shard_numbers,
    shard_path,
    write_index,
)


def move_shards(source: Path, target: Path) -> None:
    """Moves all shards of a store into another one, whose locks the caller holds; nothing is copied on one file system.

    A killed move is ended by the next one: a shard is linked, then listed in its new place, then taken out of the old.

    Args:
        source: the store to empty; its folder is removed.
        target: the store to add to; may be missing.
    """
    target.mkdir(parents=True, exist_ok=True)
    there = shard_numbers(target)
    remove_unlisted(target, there)
    specs, known = read_specs(source), read_index(target)
    next_number = max(there, default=-1) + 1
    rows = read_index(source)
    for number in shard_numbers(source):
        own = [row for row in rows.values() if row.shard == number]
        if any(row.item_id not in known or known[row.item_id].identity != row.identity for row in own):
            for path_of in (shard_path, coords_path):
                if path_of(source, number).is_file():
                    _link(path_of(source, number), path_of(target, next_number))
            moved = [row._replace(shard=next_number) for row in own]
            write_index(target, next_number, moved, [specs[digest] for digest in {row.spec for row in own}])
            next_number += 1
        index_path(source, number).unlink()
    shutil.rmtree(source)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # some file systems have no links
        with write_atomically(target, source.stat().st_size) as temporary:
            shutil.copyfile(source, temporary)
