"""Packing that is killed at random points, again and again."""

import multiprocessing
import random
import shutil
import time

import h5py
import numpy as np
import pytest

from src.data.packing import pack_activations
from src.data.readers.features import FeatureFolder
from src.stores.activations import writer
from src.stores.activations.store import ActivationStore
from tests.data.stores import check_digests

N_SLIDES, N_KILLS = 240, 8
_SLIDE_SECONDS = 0.005
_MOST_SECONDS = 1.0  # before a kill: packing takes some 1.5 s
_SHARD_BYTES = 20_000  # of ten slides


def pack_slowly(path, cache, started):
    plain = writer._Shard.add

    def add(*args):
        time.sleep(_SLIDE_SECONDS)
        plain(*args)

    writer._Shard.add = add
    writer.SHARD_BYTES = _SHARD_BYTES
    folder = FeatureFolder(path)
    started.touch()
    pack_activations(folder, folder.item_ids, cache)


def contents(cache):
    """Returns the bytes of all files of the one store, but those a process may leave that dies asking for the lock."""
    (path,) = cache.iterdir()
    return {file.name: file.read_bytes() for file in path.iterdir() if not file.name.startswith(".lock.")}


@pytest.mark.slow
def test_killed_packing_is_never_read_as_good_and_always_finishes(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "SHARD_BYTES", _SHARD_BYTES)
    features, cache, started = tmp_path / "features", tmp_path / "cache", tmp_path / "started"
    (features / "h5_files").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index in range(N_SLIDES):
        with h5py.File(features / "h5_files" / f"{index:04d}.h5", "w") as file:
            rows = rng.standard_normal((int(rng.integers(8, 60)), 16), dtype=np.float32)
            file.create_dataset("features", data=rows, chunks=(8, 16))
            file["coords"] = rng.integers(0, 10**5, (len(rows), 2))
    folder = FeatureFolder(features)
    pack_activations(folder, folder.item_ids, tmp_path / "whole")
    whole = contents(tmp_path / "whole")

    context = multiprocessing.get_context("forkserver")  # imports once, and forks where no thread runs
    context.set_forkserver_preload(["src.data.packing"])
    chance = random.Random(0)
    found = set()
    for number in range(N_KILLS):
        started.unlink(missing_ok=True)
        process = context.Process(target=pack_slowly, args=(features, cache, started))
        process.start()
        while not started.exists():
            assert process.is_alive()
            time.sleep(0.005)
        time.sleep(chance.uniform(0, _MOST_SECONDS))
        process.kill()
        process.join()
        for path in cache.glob("*"):
            if list(path.glob("index_*.csv")):
                store = ActivationStore(path)
                check_digests(store)
                assert store.item_ids == folder.item_ids[: len(store.item_ids)]
                found.add(len(store.item_ids))
        # A restart that is left alone ends as one that never was interrupted; the killed one is killed again.
        copy = tmp_path / f"copy_{number}"
        shutil.copytree(cache, copy) if cache.exists() else copy.mkdir()
        check_digests(pack_activations(folder, folder.item_ids, copy))
        assert contents(copy) == whole
    assert len(found - {N_SLIDES}) > 1  # kills at several stages
