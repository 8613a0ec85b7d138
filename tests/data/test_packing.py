import errno
import logging
import multiprocessing
import os
import shutil

import h5py
import numpy as np
import pytest
import torch

from src.data import packing, packing_plan, shard_writer, slide_packer, store_builder
from src.data.activation_store import ActivationStore
from src.data.packing import pack_activations
from src.data.readers.features import FeatureFileError, FeatureFolder
from src.data.readers.tensor_folder import TensorFolder
from src.files import digest_array

COORDS_OF_TWO = ("coords_00000.npy", "coords_00001.npy")


@pytest.fixture
def bags():
    rng = np.random.default_rng(1)
    return {f"00{i}": rng.normal(size=(n, 4)).astype(np.float32) for i, n in enumerate([3, 1, 7])}


@pytest.fixture
def folder(tmp_path, bags):
    path = tmp_path / "features" / "pt_files"
    path.mkdir(parents=True)
    for item_id, features in bags.items():
        torch.save(torch.from_numpy(features), path / f"{item_id}.pt")
    return FeatureFolder(path.parent)


def save(folder, item_id, rows):
    torch.save(torch.as_tensor(rows), folder.path / "pt_files" / f"{item_id}.pt")
    return FeatureFolder(folder.path, folder.on_bad_file)


def note_reads(monkeypatch):
    """Returns the list of slides that are read from now on."""
    read, plain = [], FeatureFolder.read

    def note(self, item_id):
        read.append(item_id)
        return plain(self, item_id)

    monkeypatch.setattr(FeatureFolder, "read", note)
    return read


def files_of(store):
    return {path.name: path.stat().st_mtime_ns for path in store.path.iterdir()}


def test_rows_are_those_of_the_files(folder, bags, tmp_path):
    store = pack_activations(folder, ["002", "000", "001"], tmp_path / "cache")
    assert store.item_ids == ["000", "001", "002"]
    assert (store.d_in, store.n_rows, store.dtype) == (4, 11, np.float32)
    assert store.row_ranges(["002", "001"]) == [(4, 11), (3, 4)]
    np.testing.assert_array_equal(store.row_ids(["001", "000"]), [3, 0, 1, 2])
    for item_id, rows in bags.items():
        np.testing.assert_array_equal(store.rows(item_id), rows)
        assert store.digest(item_id) == digest_array(rows)
    assert sorted(files_of(store)) == ["coords_00000.npy", "index.csv", "shard_00000.npy"]
    np.testing.assert_array_equal(np.load(store.path / "shard_00000.npy"), np.concatenate(list(bags.values())))


def test_all_formats_of_a_slide_pack_alike(bags, tmp_path):
    """CLAM's chunks, a compressed file, a pt file, and TRIDENT's half precision."""
    half = bags["002"].astype(np.float16)
    made = {"clam": {"chunks": (2, 4), "maxshape": (None, 4)}, "gzip": {"compression": "gzip"}}
    for name, options in made.items():
        (tmp_path / name / "h5_files").mkdir(parents=True)
        with h5py.File(tmp_path / name / "h5_files" / "0002.h5", "w") as file:
            file.create_dataset("features", data=half.astype(np.float32), **options)
    (tmp_path / "half" / "h5_files").mkdir(parents=True)
    with h5py.File(tmp_path / "half" / "h5_files" / "0002.h5", "w") as file:
        file["features"] = half
    (tmp_path / "pt" / "pt_files").mkdir(parents=True)
    torch.save(torch.from_numpy(half.astype(np.float64)), tmp_path / "pt" / "pt_files" / "0002.pt")
    for name in ("clam", "gzip", "half", "pt"):
        store = pack_activations(FeatureFolder(tmp_path / name), ["0002"], tmp_path / "cache", verify="full")
        assert store.dtype == (np.float16 if name == "half" else np.float32)
        assert store.digest("0002") == digest_array(half)
        np.testing.assert_array_equal(store.rows("0002"), half.astype(np.float32))


def test_half_precision_only_where_all_files_are_or_it_is_asked_for(folder, bags, tmp_path, caplog):
    cache = tmp_path / "cache"
    forced = pack_activations(folder, ["000"], cache, dtype="float16", verify="full")
    assert forced.dtype == np.float16
    np.testing.assert_array_equal(forced.rows("000"), bags["000"].astype(np.float16))
    assert forced.digest("000") == digest_array(bags["000"])
    plain = pack_activations(folder, ["000"], cache)
    assert plain.dtype == np.float32
    np.testing.assert_array_equal(plain.rows("000"), bags["000"])

    folder = save(folder, "half", bags["000"].astype(np.float16))
    half = pack_activations(folder, ["half"], cache)
    assert half.dtype == np.float16
    both = pack_activations(folder, ["000", "half"], cache)
    assert both.dtype == np.float32
    np.testing.assert_array_equal(both.rows("half"), half.rows("half"))

    folder = save(folder, "large", bags["000"] + 70000)
    with pytest.raises(ValueError, match=r"fit float16 .*large\.pt, got larger ones in 3 rows. Pack as float32"):
        pack_activations(folder, ["large"], cache, dtype="float16")
    with pytest.raises(ValueError, match="Expected dtype to be one of"):
        pack_activations(folder, ["000"], cache, dtype="bfloat16")


def test_reused_and_added_to(folder, bags, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    first = pack_activations(folder, ["000", "002"], cache)
    before = files_of(first)
    with monkeypatch.context() as patch:
        patch.delattr(packing, "pack_into")
        again = pack_activations(folder, ["002", "000"], cache)
        assert pack_activations(folder, ["002"], cache).item_ids == ["002"]
    assert (again.path, again.identity, files_of(again)) == (first.path, first.identity, before)
    read = []
    monkeypatch.setattr(
        FeatureFolder, "read", lambda *args, plain=FeatureFolder.read: read.append(args[1]) or plain(*args)
    )
    added = pack_activations(folder, folder.item_ids, cache)
    assert read == ["001"]
    assert added.path == first.path
    assert added.row_ranges(["000", "001", "002"]) == [(0, 3), (10, 11), (3, 10)]
    assert sorted(files_of(added)) == [*COORDS_OF_TWO, "index.csv", "shard_00000.npy", "shard_00001.npy"]
    assert files_of(added)["shard_00000.npy"] == before["shard_00000.npy"]
    np.testing.assert_array_equal(added.gather(added.row_ids(bags)), np.concatenate(list(bags.values())))
    assert pack_activations(folder, ["000", "002"], cache).item_ids == ["000", "002"]
    np.testing.assert_array_equal(first.rows("002"), bags["002"])


def test_file_that_changed_is_packed_anew_with_a_warning(folder, bags, tmp_path, caplog):
    cache = tmp_path / "cache"
    before = pack_activations(folder, folder.item_ids, cache)
    folder = save(folder, "000", bags["002"] + 1)
    after = pack_activations(folder, folder.item_ids, cache, verify="full")
    assert "000.pt (slide 000) changed since it was packed" in caplog.text
    assert after.path == before.path
    assert after.item_ids == ["001", "002", "000"]
    np.testing.assert_array_equal(after.rows("000"), bags["002"] + 1)
    np.testing.assert_array_equal(before.rows("000"), bags["000"])
    assert after.identity != before.identity


def test_file_that_changes_while_it_is_packed(folder, bags, tmp_path, monkeypatch):
    plain = FeatureFolder.read

    def read_late(self, item_id):
        if item_id == "001":
            save(folder, "001", bags["002"])
        return plain(self, item_id)

    monkeypatch.setattr(FeatureFolder, "read", read_late)
    with pytest.raises(ValueError, match=r"001\.pt \(slide 001\) to stay as it is .* start again"):
        pack_activations(folder, folder.item_ids, tmp_path / "cache", n_threads=1)
    monkeypatch.undo()
    store = pack_activations(folder, folder.item_ids, tmp_path / "cache", verify="full")
    np.testing.assert_array_equal(store.rows("001"), bags["002"])
    np.testing.assert_array_equal(store.rows("002"), bags["002"])


def test_image_that_other_ids_call_by_the_name_of_another(tmp_path, caplog):
    images = np.arange(12, dtype=np.float16).reshape(3, 4)
    np.save(tmp_path / "all.npy", images)
    for names in (["a", "b", "c"], ["b", "a", "c"]):
        (tmp_path / "ids.txt").write_text("\n".join(names))
        folder = TensorFolder({"all": tmp_path / "all.npy"}, {"all": tmp_path / "ids.txt"})
        store = pack_activations(folder, names, tmp_path / "cache", verify="full")
        assert store.dtype == np.float16
        for name, image in zip(names, images, strict=True):
            np.testing.assert_array_equal(store.rows(name), image[None].astype(np.float32))
    assert "(slide a) changed" in caplog.text
    assert "(slide c) changed" not in caplog.text


def test_unknown_slide(folder, tmp_path):
    store = pack_activations(folder, ["000", "001"], tmp_path / "cache")
    with pytest.raises(ValueError, match=r"Expected slides among the 2 .*got \['x'\]"):
        store.rows("x")
    with pytest.raises(ValueError, match="got"):
        store.row_ids(["000", "002"])
    assert store.present(["002", "001", "000"]) == ["001", "000"]


def test_bad_file_stops_packing_and_leaves_nothing(folder, tmp_path):
    folder = save(folder, "empty", torch.zeros(0, 4))
    with pytest.raises(FeatureFileError, match=r"empty\.pt, got 0"):
        pack_activations(folder, folder.item_ids, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*"))
    with pytest.raises(FileNotFoundError, match="slide 'x'"):
        pack_activations(folder, ["000", "x"], tmp_path / "cache")


def test_empty_slide_of_trident(folder, tmp_path):
    with h5py.File(folder.path / "trident.h5", "w") as file:
        file["features"] = np.zeros((0,))
    with pytest.raises(FeatureFileError, match=r"trident\.h5, got 0 \(shape \(0,\)\)"):
        pack_activations(FeatureFolder(folder.path), ["000", "trident"], tmp_path / "cache")
    folder = FeatureFolder(folder.path, on_bad_file="skip")
    assert pack_activations(folder, ["000", "trident"], tmp_path / "cache").item_ids == ["000"]


def test_skipped_slides_are_remembered_by_the_store(folder, bags, tmp_path, caplog, monkeypatch):
    """A value that is not finite shows only while rows are written, after every header was found good."""
    bad = torch.zeros(5, 4)
    bad[1, 1] = torch.nan
    save(folder, "0005", bad)
    for _ in range(2):
        caplog.clear()
        folder = FeatureFolder(folder.path, on_bad_file="skip")
        store = pack_activations(folder, [*folder.item_ids, "missing"], tmp_path / "cache", verify="full")
        assert store.item_ids == ["000", "001", "002"]
        assert set(folder.skipped) == {"0005", "missing"}
        assert "Skipped slide 0005" in caplog.text
        np.testing.assert_array_equal(store.gather(store.row_ids(bags)), np.concatenate(list(bags.values())))
        monkeypatch.delattr(packing, "pack_into", raising=False)  # the second time nothing is read
    monkeypatch.undo()
    with pytest.raises(FeatureFileError, match=r"0005\.pt, got nan or inf in 1 of its rows"):
        pack_activations(FeatureFolder(folder.path), ["000", "0005"], tmp_path / "cache")
    folder = save(folder, "0005", torch.ones(5, 4))
    assert "0005" in pack_activations(folder, ["000", "0005"], tmp_path / "cache").item_ids


def test_nothing_usable(folder, tmp_path):
    for path in (folder.path / "pt_files").iterdir():
        torch.save(torch.zeros(0, 4), path)
    with pytest.raises(ValueError, match="at least one usable slide"):
        pack_activations(FeatureFolder(folder.path, "skip"), ["000"], tmp_path / "cache")


def test_slides_that_all_turn_out_bad(folder, tmp_path):
    save(folder, "000", torch.full((2, 4), torch.inf))
    folder = FeatureFolder(folder.path, "skip")
    with pytest.raises(ValueError, match="at least one usable slide"):
        pack_activations(folder, ["000"], tmp_path / "cache")
    assert pack_activations(folder, ["001", "000"], tmp_path / "cache").item_ids == ["001"]


@pytest.mark.parametrize("n_writes", [0, 1, 2, 4])
def test_full_disk_loses_nothing(folder, bags, tmp_path, monkeypatch, n_writes):
    """Writing fails at the headers, at a slide's rows, and at the last slide's."""
    plain, written = os.pwrite, []

    def write_until_full(*args):
        if len(written) == n_writes:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(args)
        return plain(*args)

    monkeypatch.setattr(slide_packer, "_BATCH_BYTES", 1)
    monkeypatch.setattr(os, "pwrite", write_until_full)
    with pytest.raises(OSError, match=r"pack 3 slides into .*No space left.*need 0 MB.* start again") as caught:
        pack_activations(folder, folder.item_ids, tmp_path / "cache", n_threads=1)
    assert caught.value.errno == errno.ENOSPC
    monkeypatch.undo()
    (path,) = (tmp_path / "cache").iterdir()
    with pytest.raises(FileNotFoundError, match="not finished"):
        ActivationStore(path)
    store = pack_activations(folder, folder.item_ids, tmp_path / "cache", verify="full")
    assert sorted(files_of(store)) == ["coords_00000.npy", "index.csv", "shard_00000.npy"]
    np.testing.assert_array_equal(store.gather(np.arange(11)), np.concatenate(list(bags.values())))


def test_disk_that_cannot_hold_the_shard_is_known_before_anything_is_read(folder, tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shard_writer, "_reserve", refuse)
    monkeypatch.delattr(store_builder, "pack_slides")
    with pytest.raises(OSError, match="No space left"):
        pack_activations(folder, folder.item_ids, tmp_path / "cache")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_cache_that_cannot_be_written(folder, tmp_path, monkeypatch, number):
    store = pack_activations(folder, ["000"], tmp_path / "cache")

    def refuse(path, *args, **options):
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(OSError, match=r"Expected to write packed activations to .* Give a paths\.cache") as caught:
        pack_activations(folder, ["000", "001"], tmp_path / "cache")
    assert caught.value.errno == number
    assert pack_activations(folder, ["000"], tmp_path / "cache").identity == store.identity


def test_features_that_may_not_be_read_are_not_blamed_on_the_cache(folder, tmp_path, monkeypatch):
    def refuse(self, item_id):
        raise PermissionError(errno.EACCES, "Permission denied", str(self.file(item_id)))

    monkeypatch.setattr(FeatureFolder, "read", refuse)
    with pytest.raises(PermissionError, match=r"Permission denied: .*000\.pt"):
        pack_activations(folder, ["000"], tmp_path / "cache")


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOLCK])
def test_lock_refused_by_a_network_file_system(folder, tmp_path, monkeypatch, number):
    with h5py.File(folder.path / "slide.h5", "w") as file:
        file["features"] = np.zeros((2, 4), np.float32)

    def refuse(*args, **options):
        raise OSError(number, "Unable to synchronously open file")

    folder = FeatureFolder(folder.path)
    monkeypatch.setattr(h5py, "File", refuse)
    with pytest.raises(OSError, match=r"slide\.h5.*HDF5_USE_FILE_LOCKING=FALSE"):
        pack_activations(folder, ["000", "slide"], tmp_path / "cache")


def test_equal_slides_are_kept_with_a_warning(folder, bags, tmp_path, caplog):
    folder = save(folder, "twin", bags["002"])
    store = pack_activations(folder, ["002", "twin"], tmp_path / "cache")
    assert store.item_ids == ["002", "twin"]
    assert "002, twin are equal (7 patches)" in caplog.text


def test_damaged_store_is_an_error_and_is_not_written_to(folder, tmp_path):
    store = pack_activations(folder, ["000", "001"], tmp_path / "cache")
    shard = store.path / "shard_00000.npy"
    shard.write_bytes(shard.read_bytes()[:-8])
    for item_ids in (["000"], folder.item_ids):
        with pytest.raises(ValueError, match=r"whole shard at .*shard_00000\.npy.*Delete the folder"):
            pack_activations(folder, item_ids, tmp_path / "cache")
    shutil.rmtree(store.path)
    assert pack_activations(folder, folder.item_ids, tmp_path / "cache").n_rows == 11


def stop_before(monkeypatch, module, name):
    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, name, stop)


@pytest.mark.parametrize("journalled", ["all", "one", "one and a half", "one that is not on the disk"])
def test_goes_on_where_it_was_stopped(folder, bags, tmp_path, monkeypatch, caplog, journalled):
    caplog.set_level(logging.INFO)
    cache = tmp_path / "cache"
    with monkeypatch.context() as patch:
        stop_before(patch, store_builder, "write_index")
        with pytest.raises(KeyboardInterrupt):
            pack_activations(folder, folder.item_ids, cache)
    (path,) = cache.iterdir()
    journal = path / packing_plan.JOURNAL_FILE
    lines = journal.read_text().splitlines()
    kept = {"all": 4, "one": 2, "one and a half": 2, "one that is not on the disk": 2}[journalled]
    journal.write_text("\n".join(lines[:kept]) + ("\n" + lines[2][:20] if "half" in journalled else ""))
    if "disk" in journalled:
        with open(path / "shard_00000.npy", "r+b") as file:
            file.seek(-11 * 16, os.SEEK_END)
            file.write(bytes(3 * 16))
    (path / ".index.left.partial.csv").write_text("half")
    read = []
    monkeypatch.setattr(
        FeatureFolder, "read", lambda *args, plain=FeatureFolder.read: read.append(args[1]) or plain(*args)
    )
    store = pack_activations(folder, folder.item_ids, cache, verify="full")
    expected = {"all": [], "one that is not on the disk": ["000", "001", "002"]}.get(journalled, ["001", "002"])
    assert sorted(read) == expected
    assert ("did not reach the disk" in caplog.text) == ("disk" in journalled)
    assert sorted(files_of(store)) == ["coords_00000.npy", "index.csv", "shard_00000.npy"]
    np.testing.assert_array_equal(store.gather(np.arange(11)), np.concatenate(list(bags.values())))


def test_an_unfinished_packing_is_taken_up_by_one_of_other_slides(folder, bags, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    with monkeypatch.context() as patch:
        stop_before(patch, store_builder, "write_index")
        with pytest.raises(KeyboardInterrupt):
            pack_activations(folder, ["000", "002"], cache)
    folder = save(folder, "002", bags["000"])
    store = pack_activations(folder, ["001", "002"], cache, verify="full")
    assert store.item_ids == ["001", "002"]
    np.testing.assert_array_equal(store.rows("002"), bags["000"])
    np.testing.assert_array_equal(ActivationStore(store.path, "full").rows("000"), bags["000"])


def test_stopped_after_the_index_was_written(folder, bags, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_before(patch, store_builder, "remove_plan")
        with pytest.raises(KeyboardInterrupt):
            pack_activations(folder, ["000", "002"], tmp_path / "cache")
    assert pack_activations(folder, ["000", "002"], tmp_path / "cache").item_ids == ["000", "002"]
    store = pack_activations(folder, folder.item_ids, tmp_path / "cache", verify="full")
    assert store.row_ranges(["000", "002", "001"]) == [(0, 3), (3, 10), (10, 11)]
    assert sorted(files_of(store)) == [*COORDS_OF_TWO, "index.csv", "shard_00000.npy", "shard_00001.npy"]


def pack_in_a_process(path, cache, barrier, queue):
    barrier.wait()
    folder = FeatureFolder(path)
    queue.put(str(pack_activations(folder, folder.item_ids, cache).path))


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
    store = pack_activations(folder, folder.item_ids, tmp_path / "cache", verify="full")
    assert sorted(files_of(store)) == ["coords_00000.npy", "index.csv", "shard_00000.npy"]
    np.testing.assert_array_equal(store.gather(np.arange(11)), np.concatenate(list(bags.values())))


def test_what_another_process_packed_meanwhile_is_used(folder, tmp_path, monkeypatch, caplog):
    """Another process finishes the same store between this one's first look and its turn."""
    caplog.set_level(logging.INFO)
    cache, plain = tmp_path / "cache", packing.wait_for_lock

    def wait_for_another(*args):
        monkeypatch.setattr(packing, "wait_for_lock", plain)
        pack_activations(folder, folder.item_ids, cache)
        monkeypatch.delattr(store_builder, "pack_slides")
        return plain(*args)

    monkeypatch.setattr(packing, "wait_for_lock", wait_for_another)
    store = pack_activations(folder, folder.item_ids, cache)
    assert list(cache.iterdir()) == [store.path]
    assert store.item_ids == folder.item_ids
    assert "Another process packed" in caplog.text


@pytest.mark.realdata
def test_real_folders(data_dir, tmp_path):
    for path in sorted((data_dir / "mil").glob("*/h5_files")):
        folder = FeatureFolder(path.parent)
        store = pack_activations(folder, folder.item_ids, tmp_path, verify="full")
        for item_id in folder.item_ids:
            np.testing.assert_array_equal(store.rows(item_id), folder.read(item_id).features)
            assert store.digest(item_id) == digest_array(folder.read(item_id).features)
