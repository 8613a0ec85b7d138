import multiprocessing
import os

import numpy as np
import pytest
import torch

from src.data import packing
from src.data.activation_store import ActivationStore
from src.data.features import FeatureFileError, FeatureFolder
from src.data.packing import pack_activations
from src.files import digest_array


@pytest.fixture
def bags():
    rng = np.random.default_rng(1)
    return {f"00{i}": rng.normal(size=(n, 4)).astype(np.float32) for i, n in enumerate([3, 1, 7])}


@pytest.fixture
def folder(tmp_path, bags):
    path = tmp_path / "features" / "pt_files"
    path.mkdir(parents=True)
    for slide_id, features in bags.items():
        torch.save(torch.from_numpy(features), path / f"{slide_id}.pt")
    return FeatureFolder(path.parent)


def test_rows_are_those_of_the_files(folder, bags, tmp_path):
    store = pack_activations(folder, ["002", "000", "001"], tmp_path / "cache")
    assert store.slide_ids == ["000", "001", "002"]
    assert store.d_in == 4
    assert store.activations.dtype == np.float32
    assert not store.activations.flags.writeable
    assert store.row_ranges(["002", "001"]) == [(4, 11), (3, 4)]
    np.testing.assert_array_equal(store.row_ids(["001", "000"]), [3, 0, 1, 2])
    for slide_id, features in bags.items():
        np.testing.assert_array_equal(store.rows(slide_id), features)
        assert store.digest(slide_id) == digest_array(features)
    np.testing.assert_array_equal(np.load(store.path / "activations.npy"), np.concatenate(list(bags.values())))
    assert store.path.stat().st_mode & 0o777 == 0o755


def test_reused_until_a_file_or_the_slides_change(folder, tmp_path):
    cache = tmp_path / "cache"
    first = pack_activations(folder, folder.slide_ids, cache)
    stamp = (first.path / "activations.npy").stat().st_mtime_ns
    again = pack_activations(folder, reversed(folder.slide_ids), cache)
    assert again.path == first.path
    assert (again.path / "activations.npy").stat().st_mtime_ns == stamp
    assert pack_activations(folder, ["000"], cache).path != first.path
    os.utime(folder.file("001"), ns=(1, 1))
    assert pack_activations(folder, folder.slide_ids, cache).path != first.path
    assert sorted(path.name[0] == "." for path in cache.iterdir()) == [False] * 3


def test_unknown_slide(folder, tmp_path):
    store = pack_activations(folder, ["000", "001"], tmp_path / "cache")
    with pytest.raises(ValueError, match=r"Expected slides among the 2 .*got \['x'\]"):
        store.rows("x")
    with pytest.raises(ValueError, match="got"):
        store.row_ids(["000", "002"])
    assert store.present(["002", "001", "000"]) == ["001", "000"]


def test_bad_file_stops_packing_and_leaves_nothing(folder, tmp_path):
    torch.save(torch.zeros(0, 4), folder.path / "pt_files" / "empty.pt")
    folder = FeatureFolder(folder.path)
    with pytest.raises(FeatureFileError, match=r"empty\.pt, got 0"):
        pack_activations(folder, folder.slide_ids, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*"))
    with pytest.raises(FileNotFoundError, match="slide 'x'"):
        pack_activations(folder, ["000", "x"], tmp_path / "cache")


def test_skipped_slides_are_remembered_by_the_store(folder, bags, tmp_path, caplog):
    """A value that is not finite shows only while rows are written, after every header was found good."""
    bad = torch.zeros(5, 4)
    bad[1, 1] = torch.nan
    torch.save(bad, folder.path / "pt_files" / "0005.pt")
    for _ in range(2):
        caplog.clear()
        folder = FeatureFolder(folder.path, on_bad_file="skip")
        store = pack_activations(folder, [*folder.slide_ids, "missing"], tmp_path / "cache")
        assert store.slide_ids == ["000", "001", "002"]
        assert set(folder.skipped) == {"0005", "missing"}
        assert "Skipped slide 0005" in caplog.text
        np.testing.assert_array_equal(store.activations, np.concatenate(list(bags.values())))


def test_nothing_usable(folder, tmp_path):
    for path in (folder.path / "pt_files").iterdir():
        torch.save(torch.zeros(0, 4), path)
    with pytest.raises(ValueError, match="at least one usable slide"):
        pack_activations(FeatureFolder(folder.path, "skip"), ["000"], tmp_path / "cache")


def test_full_disk_leaves_nothing_and_says_what_is_needed(folder, tmp_path, monkeypatch):
    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(packing, "_write_rows", fail)
    with pytest.raises(OSError, match=r"No space left.*needs 0 MB") as caught:
        pack_activations(folder, folder.slide_ids, tmp_path / "cache")
    assert caught.value.errno == 28
    assert list((tmp_path / "cache").iterdir()) == []


def test_equal_slides_are_kept_with_a_warning(folder, bags, tmp_path, caplog):
    torch.save(torch.from_numpy(bags["002"]), folder.path / "pt_files" / "twin.pt")
    store = pack_activations(FeatureFolder(folder.path), ["002", "twin"], tmp_path / "cache")
    assert store.slide_ids == ["002", "twin"]
    assert "002, twin are equal (7 patches)" in caplog.text


def test_store_that_does_not_agree_with_its_index(folder, tmp_path):
    store = pack_activations(folder, folder.slide_ids, tmp_path / "cache")
    index = store.path / "index.csv"
    index.write_text(index.read_text().replace(",11,", ",12,"))
    with pytest.raises(ValueError, match=r"cover the 11 rows.*Delete the folder"):
        ActivationStore(store.path)
    array = store.path / "activations.npy"
    array.write_bytes(array.read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"whole activations\.npy in"):
        ActivationStore(store.path)


def pack_in_a_process(path, cache, barrier, queue):
    barrier.wait()
    folder = FeatureFolder(path)
    queue.put(str(pack_activations(folder, folder.slide_ids, cache).path))


@pytest.mark.slow
def test_two_processes_build_one_store(folder, bags, tmp_path):
    context = multiprocessing.get_context("spawn")
    barrier, queue = context.Barrier(2), context.Queue()
    arguments = (folder.path, tmp_path / "cache", barrier, queue)
    processes = [context.Process(target=pack_in_a_process, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    paths = {queue.get(timeout=60) for _ in processes}
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert len(paths) == 1
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [os.path.basename(paths.pop())]
    store = pack_activations(folder, folder.slide_ids, tmp_path / "cache")
    np.testing.assert_array_equal(store.activations, np.concatenate(list(bags.values())))


def test_the_later_of_two_builders_discards_its_work(folder, tmp_path, monkeypatch):
    """Another process finishes the same store between this one's first look and its rename."""
    write_rows = packing._write_rows
    cache = tmp_path / "cache"

    def write_after_another(folder, slide_ids, path):
        monkeypatch.setattr(packing, "_write_rows", write_rows)
        pack_activations(folder, slide_ids, cache)
        return write_rows(folder, slide_ids, path)

    monkeypatch.setattr(packing, "_write_rows", write_after_another)
    store = pack_activations(folder, folder.slide_ids, cache)
    assert list(cache.iterdir()) == [store.path]
    assert store.slide_ids == folder.slide_ids


@pytest.mark.realdata
def test_real_folders(data_dir, tmp_path):
    for path in sorted((data_dir / "mil").glob("*/h5_files")):
        folder = FeatureFolder(path.parent)
        store = pack_activations(folder, folder.slide_ids, tmp_path)
        for slide_id in folder.slide_ids:
            np.testing.assert_array_equal(store.rows(slide_id), folder.read(slide_id).features)
