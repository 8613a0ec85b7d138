import errno
import itertools
import logging
import multiprocessing
import os
import shutil

import h5py
import numpy as np
import pytest
import torch

from src.activation_spec import ActivationSpec
from src.data import packing
from src.data.packing import pack_activations
from src.data.readers.features import FeatureFileError, FeatureFolder
from src.data.readers.tensor_folder import TensorFolder
from src.files import digest_array
from src.stores.activations import writer
from src.stores.activations.store import ActivationStore
from tests.data.readers.opened import read
from tests.data.stores import check_digests

ONE_SHARD = ["index_00000.csv", "shard_00000.npy", "specs.json"]
TWO_SHARDS = ["index_00000.csv", "index_00001.csv", "shard_00000.npy", "shard_00001.npy", "specs.json"]


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
    return FeatureFolder(folder.path, "skip" if folder.skips else "error")


def pack(folder, item_ids, cache):
    """Packs, and compares what is stored with its digests."""
    store = pack_activations(folder, item_ids, cache)
    check_digests(store)
    return store


def note_reads(monkeypatch):
    """Returns the list of items that are opened from now on."""
    opened, plain = [], FeatureFolder.open

    def note(self, item_id):
        opened.append(item_id)
        return plain(self, item_id)

    monkeypatch.setattr(FeatureFolder, "open", note)
    return opened


def files_of(store):
    return {path.name: path.stat().st_mtime_ns for path in store.path.iterdir()}


@pytest.fixture(params=["inline", "in a thread"])
def writing(request, monkeypatch):
    """Items are written by the thread that reads, or as large ones are."""
    monkeypatch.setattr(writer, "_LARGE_BYTES", 0 if request.param == "in a thread" else 1 << 30)


@pytest.mark.usefixtures("writing")
def test_rows_are_those_of_the_files(folder, bags, tmp_path):
    store = pack_activations(folder, ["002", "000", "001"], tmp_path / "cache")
    assert store.item_ids == ["000", "001", "002"]
    assert (store.d_in, store.n_rows, store.dtype) == (4, 11, np.float32)
    assert store.row_ranges(["002", "001"]) == [(4, 11), (3, 4)]
    np.testing.assert_array_equal(store.row_ids(["001", "000"]), [3, 0, 1, 2])
    for item_id, rows in bags.items():
        np.testing.assert_array_equal(store.rows(item_id), rows)
        assert store.digest(item_id) == digest_array(rows)
    assert sorted(files_of(store)) == ONE_SHARD
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
        store = pack(FeatureFolder(tmp_path / name), ["0002"], tmp_path / "cache")
        assert store.dtype == (np.float16 if name == "half" else np.float32)
        assert store.digest("0002") == digest_array(half)
        np.testing.assert_array_equal(store.rows("0002"), half.astype(np.float32))


def test_half_precision_stays_beside_single_precision(folder, bags, tmp_path):
    cache = tmp_path / "cache"
    folder = save(folder, "half", bags["000"].astype(np.float16))
    assert pack(folder, ["half"], cache).dtype == np.float16
    both = pack(folder, ["000", "002", "half"], cache)
    assert both.dtype == np.float32
    np.testing.assert_array_equal(both.rows("half"), bags["000"].astype(np.float16))
    np.testing.assert_array_equal(both.rows("000"), bags["000"])
    np.testing.assert_array_equal(both.read(0, 5).dtype, np.float32)
    assert pack(folder, ["half"], cache).dtype == np.float16
    types = [np.load(path).dtype for path in sorted(both.path.glob("shard_*.npy"))]
    assert types == [np.float16, np.float32]


def test_reused_and_added_to(folder, bags, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    first = pack_activations(folder, ["000", "002"], cache)
    before = files_of(first)
    opened = note_reads(monkeypatch)
    again = pack_activations(folder, ["002", "000"], cache)
    assert pack_activations(folder, ["002"], cache).item_ids == ["002"]
    assert (again.path, files_of(again)) == (first.path, before)
    assert opened == []
    added = pack_activations(folder, folder.item_ids, cache)
    assert opened == ["001"]
    assert added.path == first.path
    assert added.row_ranges(["000", "001", "002"]) == [(0, 3), (10, 11), (3, 10)]
    assert sorted(files_of(added)) == TWO_SHARDS
    assert {name: files_of(added)[name] for name in before} == before
    np.testing.assert_array_equal(added.gather(added.row_ids(bags)), np.concatenate(list(bags.values())))
    assert pack_activations(folder, ["000", "002"], cache).item_ids == ["000", "002"]
    np.testing.assert_array_equal(first.rows("002"), bags["002"])


def test_file_that_changed_is_packed_anew_with_a_warning(folder, bags, tmp_path, caplog):
    cache = tmp_path / "cache"
    before = pack_activations(folder, folder.item_ids, cache)
    folder = save(folder, "000", bags["002"] + 1)
    after = pack(folder, folder.item_ids, cache)
    assert "pt_files/000.pt changed since it was packed" in caplog.text
    assert after.path == before.path
    assert after.item_ids == ["001", "002", "000"]
    np.testing.assert_array_equal(after.rows("000"), bags["002"] + 1)
    np.testing.assert_array_equal(before.rows("000"), bags["000"])


@pytest.mark.parametrize("suffix", ["pt", "h5"])
def test_file_that_changes_while_it_is_packed(folder, bags, tmp_path, monkeypatch, suffix):
    plain = FeatureFolder.open

    def open_late(self, item_id):
        if item_id == "001" and suffix == "pt":
            save(folder, "001", bags["002"])
        if item_id == "s":
            (folder.path / "s.h5").write_bytes((folder.path / "s.h5").read_bytes() + b"more")
        return plain(self, item_id)

    folder = write_h5(folder, "s", bags["002"])
    changed = {"pt": "001", "h5": "s"}[suffix]
    monkeypatch.setattr(FeatureFolder, "open", open_late)
    with pytest.raises(ValueError, match=rf"{changed}\.{suffix} \({changed}\) to stay as it is .* start again"):
        pack_activations(folder, folder.item_ids, tmp_path / "cache")
    monkeypatch.undo()
    store = pack(folder, folder.item_ids, tmp_path / "cache")
    np.testing.assert_array_equal(store.rows("001"), bags["002" if suffix == "pt" else "001"])
    np.testing.assert_array_equal(store.rows("002"), bags["002"])


def test_image_that_other_ids_call_by_the_name_of_another(tmp_path, caplog):
    images = np.arange(12, dtype=np.float16).reshape(3, 4)
    np.save(tmp_path / "all.npy", images)
    for names in (["a", "b", "c"], ["b", "a", "c"]):
        (tmp_path / "ids.txt").write_text("\n".join(names))
        folder = TensorFolder({"all": tmp_path / "all.npy"}, {"all": tmp_path / "ids.txt"})
        store = pack(folder, names, tmp_path / "cache")
        assert store.dtype == np.float16
        for name, image in zip(names, images, strict=True):
            np.testing.assert_array_equal(store.rows(name), image[None].astype(np.float32))
    assert sorted(record.args[0] for record in caplog.records if "changed" in record.msg) == [
        "all.npy[0]",
        "all.npy[1]",
    ]


def test_unknown_slide(folder, tmp_path):
    store = pack_activations(folder, ["000", "001"], tmp_path / "cache")
    with pytest.raises(ValueError, match=r"Expected items among the 2 .*got \['x'\]"):
        store.rows("x")
    with pytest.raises(ValueError, match="got"):
        store.row_ids(["000", "002"])
    assert store.present(["002", "001", "000"]) == ["001", "000"]


def test_bad_file_stops_packing_and_leaves_nothing(folder, tmp_path):
    folder = save(folder, "empty", torch.zeros(0, 4))
    with pytest.raises(FeatureFileError, match=r"empty\.pt, got 0"):
        pack_activations(folder, folder.item_ids, tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    with pytest.raises(FileNotFoundError, match="slide 'x'"):
        pack_activations(folder, ["000", "x"], tmp_path / "cache")


def test_empty_slide_of_trident(folder, tmp_path):
    with h5py.File(folder.path / "trident.h5", "w") as file:
        file["features"] = np.zeros((0,))
    with pytest.raises(FeatureFileError, match=r"trident\.h5, got 0 \(shape \(0,\)\)"):
        pack_activations(FeatureFolder(folder.path), ["000", "trident"], tmp_path / "cache")
    folder = FeatureFolder(folder.path, on_bad_file="skip")
    assert pack_activations(folder, ["000", "trident"], tmp_path / "cache").item_ids == ["000"]


@pytest.mark.usefixtures("writing")
def test_skipped_items_are_remembered_by_the_store(folder, bags, tmp_path, caplog, monkeypatch):
    """A value that is not finite shows only while rows are written; the rows before and after stay good."""
    bad = torch.zeros(5, 4)
    bad[1, 1] = torch.nan
    save(folder, "0005", bad)
    for _ in range(2):
        caplog.clear()
        folder = FeatureFolder(folder.path, on_bad_file="skip")
        store = pack(folder, [*folder.item_ids, "missing"], tmp_path / "cache")
        assert store.item_ids == ["000", "001", "002"]
        assert set(folder.skipped) == {"0005", "missing"}
        assert "Skipped 0005" in caplog.text
        np.testing.assert_array_equal(store.gather(store.row_ids(bags)), np.concatenate(list(bags.values())))
        monkeypatch.delattr(packing, "StoreWriter", raising=False)  # the second time nothing is packed
    monkeypatch.undo()
    with pytest.raises(FeatureFileError, match=r"0005\.pt, got nan or inf in 1 of its rows"):
        pack_activations(FeatureFolder(folder.path), ["000", "0005"], tmp_path / "cache")
    folder = save(folder, "0005", torch.ones(5, 4))
    assert "0005" in pack_activations(folder, ["000", "0005"], tmp_path / "cache").item_ids


def test_nothing_usable(folder, tmp_path):
    for path in (folder.path / "pt_files").iterdir():
        torch.save(torch.zeros(0, 4), path)
    with pytest.raises(ValueError, match="at least one usable item"):
        pack_activations(FeatureFolder(folder.path, "skip"), ["000"], tmp_path / "cache")


def test_slides_that_all_turn_out_bad(folder, tmp_path):
    save(folder, "000", torch.full((2, 4), torch.inf))
    folder = FeatureFolder(folder.path, "skip")
    with pytest.raises(ValueError, match="at least one usable item"):
        pack_activations(folder, ["000"], tmp_path / "cache")
    assert pack_activations(folder, ["001", "000"], tmp_path / "cache").item_ids == ["001"]


@pytest.mark.usefixtures("writing")
@pytest.mark.parametrize("n_writes", range(6))
def test_full_disk_loses_nothing(folder, bags, tmp_path, monkeypatch, n_writes):
    """Writing fails at the rows or at the header of one of three shards, each of one item here."""
    plain, written = open, itertools.count()

    def open_until_full(path, mode="r", *args, **options):
        file = plain(path, mode, *args, **options)
        if mode == "wb":
            write = file.write

            class Full:
                def __getattr__(self, name):
                    return getattr(file, name)

                def __enter__(self):
                    return self

                def __exit__(self, *_):
                    file.close()

                def write(self, values):
                    if next(written) >= n_writes:
                        raise OSError(errno.ENOSPC, "No space left on device")
                    return write(values)

            return Full()
        return file

    monkeypatch.setattr(writer, "SHARD_BYTES", 1)
    monkeypatch.setattr(writer, "open", open_until_full, raising=False)
    with pytest.raises(
        OSError, match=r"Could not pack \d items into .* need 0 MB: .*No space left.* start again"
    ) as caught:
        pack_activations(folder, folder.item_ids, tmp_path / "cache")
    assert caught.value.errno == errno.ENOSPC
    monkeypatch.undo()
    (path,) = (tmp_path / "cache").iterdir()
    assert not list(path.glob("*.partial*")) + list(path.glob(".*partial*"))
    n_whole = n_writes // 2  # rows, header
    assert len(list(path.glob("shard_*.npy"))) == len(list(path.glob("index_*.csv"))) == n_whole
    opened = note_reads(monkeypatch)
    store = pack(folder, folder.item_ids, tmp_path / "cache")
    assert opened == ["000", "001", "002"][n_whole:]
    np.testing.assert_array_equal(store.gather(np.arange(11)), np.concatenate(list(bags.values())))


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_cache_that_cannot_be_written(folder, tmp_path, monkeypatch, number):
    store = pack_activations(folder, ["000"], tmp_path / "cache")

    def refuse(path, *args, **options):
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(OSError, match=r"Could not pack 1 items into .* give a paths\.cache") as caught:
        pack_activations(folder, ["000", "001"], tmp_path / "cache")
    assert caught.value.errno == number
    assert pack_activations(folder, ["000"], tmp_path / "cache").path == store.path


def test_features_that_may_not_be_read_are_not_blamed_on_the_cache(folder, tmp_path, monkeypatch):
    def refuse(self, item_id):
        raise PermissionError(errno.EACCES, "Permission denied", str(self.path / f"{item_id}.pt"))

    monkeypatch.setattr(FeatureFolder, "open", refuse)
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
    assert "002, twin are equal (7 rows)" in caplog.text


def test_damaged_store_is_an_error_and_is_not_written_to(folder, tmp_path):
    store = pack_activations(folder, ["000", "001"], tmp_path / "cache")
    shard = store.path / "shard_00000.npy"
    shard.write_bytes(shard.read_bytes()[:-8])
    for item_ids in (["000"], folder.item_ids):
        with pytest.raises(ValueError, match=r"whole shard at .*shard_00000\.npy.*Delete the folder"):
            pack_activations(folder, item_ids, tmp_path / "cache")
    shutil.rmtree(store.path)
    assert pack_activations(folder, folder.item_ids, tmp_path / "cache").n_rows == 11


@pytest.mark.parametrize("stopped_at", ["rows", "coords", "table"])
def test_goes_on_where_it_was_stopped(folder, bags, tmp_path, monkeypatch, stopped_at):
    """A shard an item; the process stops in the second, whose table alone makes it one."""
    cache, plain = tmp_path / "cache", writer.write_index

    def stop(*args):
        if args[1:2] == (0,):
            return plain(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(writer, "SHARD_BYTES", 1)
    with monkeypatch.context() as patch:
        if stopped_at == "rows":
            number = itertools.count()
            add = writer._Shard.add
            patch.setattr(writer._Shard, "add", lambda *args: stop() if next(number) else add(*args))
        patch.setattr(writer, "write_index", stop)
        with pytest.raises(KeyboardInterrupt):
            pack_activations(folder, folder.item_ids, cache)
    (path,) = cache.iterdir()
    (path / ".index_00001.left.partial.csv").write_text("half")
    assert ActivationStore(path).item_ids == ["000"]
    opened = note_reads(monkeypatch)
    store = pack(folder, folder.item_ids, cache)
    assert opened == ["001", "002"]
    assert not list(path.glob(".*"))
    np.testing.assert_array_equal(store.gather(np.arange(11)), np.concatenate(list(bags.values())))


def test_an_unfinished_packing_is_taken_up_by_one_of_other_items(folder, bags, tmp_path, monkeypatch):
    cache, plain = tmp_path / "cache", FeatureFolder.open
    monkeypatch.setattr(writer, "SHARD_BYTES", 1)

    def stop(self, item_id):
        if item_id == "002":
            raise KeyboardInterrupt
        return plain(self, item_id)

    with monkeypatch.context() as patch:
        patch.setattr(FeatureFolder, "open", stop)
        with pytest.raises(KeyboardInterrupt):
            pack_activations(folder, ["000", "001", "002"], cache)
    folder = save(folder, "000", bags["002"] + 1)
    store = pack(folder, ["000", "002"], cache)
    assert store.item_ids == ["000", "002"]
    np.testing.assert_array_equal(store.rows("000"), bags["002"] + 1)
    assert sorted(ActivationStore(store.path).item_ids) == ["000", "002"]


def write_h5(folder, item_id, rows, **attributes):
    with h5py.File(folder.path / f"{item_id}.h5", "w") as file:
        file["features"] = rows
        file.attrs.update(attributes)
    return FeatureFolder(folder.path)


def test_spec_of_the_store_is_that_of_its_items(folder, bags, tmp_path):
    first, second = ActivationSpec(model="vit", layer="3"), ActivationSpec(model="vit", patch_size="256")
    write_h5(folder, "a", bags["000"], spec=first.to_json())
    folder = write_h5(folder, "b", bags["001"], spec=second.to_json())
    store = pack_activations(folder, ["000", "a", "b"], tmp_path / "cache")
    assert store.spec == ActivationSpec(model="vit", layer="3", patch_size="256")
    assert ActivationStore(store.path, ["000"]).spec == ActivationSpec()


def test_items_of_different_specs_are_refused_by_the_names_of_both_files(folder, bags, tmp_path):
    cache = tmp_path / "cache"
    write_h5(folder, "a", bags["000"], spec=ActivationSpec(model="vit", layer="3").to_json())
    folder = write_h5(folder, "b", bags["001"], spec=ActivationSpec(model="vit", layer="4").to_json())
    with pytest.raises(
        ValueError, match=r"(?s)differ in layer:.*a\.h5: .*layer 3.*b\.h5: .*layer 4.*different folders"
    ):
        pack_activations(folder, ["000", "a", "b"], cache)
    pack_activations(folder, ["a"], cache)
    pack_activations(folder, ["b"], cache)
    with pytest.raises(ValueError, match=r"(?s)a\.h5: .*b\.h5: "):
        pack_activations(folder, ["a", "b"], cache)
    folder = write_h5(folder, "a", bags["000"], spec=ActivationSpec(model="vit", layer="4").to_json())
    assert pack_activations(folder, ["a", "b"], cache).spec.layer == "4"


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
    store = pack(folder, folder.item_ids, tmp_path / "cache")
    assert sorted(files_of(store)) == ONE_SHARD
    np.testing.assert_array_equal(store.gather(np.arange(11)), np.concatenate(list(bags.values())))


def test_what_another_process_packed_meanwhile_is_used(folder, tmp_path, monkeypatch, caplog):
    """Another process finishes the same store between this one's first look and its turn."""
    caplog.set_level(logging.INFO)
    cache, plain = tmp_path / "cache", packing.wait_for_lock

    def wait_for_another(*args):
        monkeypatch.setattr(packing, "wait_for_lock", plain)
        pack_activations(folder, folder.item_ids, cache)
        monkeypatch.delattr(packing, "StoreWriter")
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
        store = pack(folder, folder.item_ids, tmp_path)
        for item_id in folder.item_ids:
            np.testing.assert_array_equal(store.rows(item_id), read(folder, item_id))
            assert store.digest(item_id) == digest_array(read(folder, item_id))
