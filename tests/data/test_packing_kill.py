"""Packing that is killed at random points, again and again."""

import multiprocessing
import random
import shutil
import time

import h5py
import numpy as np
import pytest

from src.data import slide_packer
from src.data.activation_store import ActivationStore
from src.data.packing import pack_activations
from src.data.readers.features import FeatureFolder

N_SLIDES, N_KILLS = 240, 8
_SLIDE_SECONDS = 0.01
_MOST_SECONDS = 0.5  # before a kill: packing takes 1.2 s, a fifth of that headers


def pack_slowly(path, cache, started):
    plain = slide_packer._pack_values

    def pack_values(*args):
        time.sleep(_SLIDE_SECONDS)
        return plain(*args)

    slide_packer._pack_values = pack_values
    slide_packer._BATCH_BYTES = 1
    folder = FeatureFolder(path)
    started.touch()
    pack_activations(folder, folder.item_ids, cache, n_threads=2)


def contents(cache):
    """Returns the bytes of all files of the one store, but those a process may leave that dies asking for the lock."""
    (path,) = cache.iterdir()
    return {file.name: file.read_bytes() for file in path.iterdir() if not file.name.startswith(".lock.")}


@pytest.mark.slow
def test_killed_packing_is_never_read_as_good_and_always_finishes(tmp_path):
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
    n_unfinished, n_journalled = 0, set()
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
            if (path / "index.csv").exists():
                assert ActivationStore(path, verify="full").item_ids == folder.item_ids
            else:
                n_unfinished += 1
                with pytest.raises(FileNotFoundError, match="not finished"):
                    ActivationStore(path)
                if (path / "journal.jsonl").exists():
                    n_journalled.add((path / "journal.jsonl").read_bytes().count(b"\n"))
        # A restart that is left alone ends as one that never was interrupted; the killed one is killed again.
        copy = tmp_path / f"copy_{number}"
        shutil.copytree(cache, copy) if cache.exists() else copy.mkdir()
        pack_activations(folder, folder.item_ids, copy, verify="full")
        assert contents(copy) == whole
    assert n_unfinished > N_KILLS // 2
    assert len(n_journalled) > 2
