import multiprocessing
import pickle
import subprocess
import sys

import h5py
import numpy as np
import pytest

from src.data.packing import pack_activations
from src.data.readers.features import FeatureFolder
from src.stores.activations import writer
from src.stores.activations.store import ActivationStore
from tests.data.stores import check_digests, pack

BAGS = {f"00{i}": np.random.default_rng(i).normal(size=(n, 4)).astype(np.float32) for i, n in enumerate([30, 11, 70])}
ALL = np.concatenate(list(BAGS.values()))


@pytest.fixture(params=[10**9, 16 * 45], ids=["one shard", "two shards"])
def store(request, tmp_path, monkeypatch):
    """A store in one shard, and in two: the last item is larger than a shard."""
    monkeypatch.setattr(writer, "SHARD_BYTES", request.param)
    return pack(tmp_path, BAGS)


def test_gather_takes_any_order_and_repeats(store):
    rng = np.random.default_rng(0)
    for row_ids in (rng.permutation(111), rng.integers(0, 111, 300), np.sort(rng.integers(0, 111, 50)), np.arange(0)):
        rows = store.gather(row_ids)
        assert rows.dtype == np.float32
        np.testing.assert_array_equal(rows, ALL[row_ids])
        for dtype in (np.float32, np.float16):
            out = np.empty((len(row_ids), 4), dtype)
            assert store.gather(row_ids, out) is out
            np.testing.assert_array_equal(out, ALL[row_ids].astype(dtype))


def test_read_is_a_view_where_one_shard_holds_the_rows(store):
    n_shards = len(list(store.path.glob("shard_*.npy")))
    for start, stop in ((0, 111), (3, 9), (20, 60), (111, 111)):
        np.testing.assert_array_equal(store.read(start, stop), ALL[start:stop])
    assert n_shards in (1, 2)
    assert store.read(0, 111).flags.owndata == (n_shards > 1)
    assert not store.read(3, 9).flags.owndata
    assert not store.read(3, 9).flags.writeable
    np.testing.assert_array_equal(
        np.concatenate([np.load(path) for path in sorted(store.path.glob("shard_*.npy"))]), ALL
    )


def test_rows_that_do_not_exist(store):
    for row_ids in ([-1], [111], [0, 5000]):
        with pytest.raises(ValueError, match="among the 111 of the store"):
            store.gather(np.array(row_ids))
    with pytest.raises(ValueError, match="got 100 to 112"):
        store.read(100, 112)
    with pytest.raises(ValueError, match=r"Expected a C-contiguous buffer \(2, 4\)"):
        store.gather(np.array([0, 1]), np.empty((4, 2), np.float32).T)


def sum_rows(store, queue):
    queue.put(float(store.gather(np.arange(store.n_rows)).sum()))


@pytest.mark.slow
def test_pickled_by_its_path(store):
    copy = pickle.loads(pickle.dumps(store))
    assert copy.spec == store.spec
    np.testing.assert_array_equal(copy.rows("002"), BAGS["002"])
    assert len(pickle.dumps(store)) < 4000
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=sum_rows, args=(store, queue))
    process.start()
    assert queue.get(timeout=60) == float(ALL[np.arange(111)].sum())
    process.join()


def test_subset_maps_the_shards_that_hold_it(store):
    part = ActivationStore(store.path, item_ids=["002", "missing"])
    assert part.item_ids == ["002"]
    np.testing.assert_array_equal(part.gather(part.row_ids(["002"])), BAGS["002"])
    np.testing.assert_array_equal(part.rows("002"), BAGS["002"])
    with pytest.raises(ValueError, match="Expected some of the items"):
        ActivationStore(store.path, item_ids=["missing"])


def test_flipped_byte_changes_the_digest(store):
    path = sorted(store.path.glob("shard_*.npy"))[-1]
    content = bytearray(path.read_bytes())
    content[-6] ^= 1
    path.write_bytes(content)
    with pytest.raises(AssertionError):
        check_digests(ActivationStore(store.path))


@pytest.mark.parametrize("left", [0, 70, 200])
def test_shard_that_is_cut_short(store, left):
    path = store.path / "shard_00000.npy"
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(ValueError, match=rf"whole shard at .*shard_00000\.npy, got {left} bytes.*Delete the folder"):
        ActivationStore(store.path)


def test_shards_that_do_not_agree_with_the_index(store):
    last = sorted(store.path.glob("shard_*.npy"))[-1]
    index = sorted(store.path.glob("index_*.csv"))[-1]
    whole, n_rows = index.read_text(), len(np.load(last))
    index.write_text(whole.replace(f",{n_rows},", f",{n_rows + 1},"))
    with pytest.raises(ValueError, match=rf"Expected at least {n_rows + 1} rows in .*{last.name}, .* got {n_rows}"):
        ActivationStore(store.path)
    index.write_text(whole.replace(",digest", ",other"))
    with pytest.raises(ValueError, match=r"Expected the columns .* in .*index_0000\d\.csv"):
        ActivationStore(store.path)
    index.write_text(whole)
    if last.name != "shard_00000.npy":
        np.save(last, np.zeros((n_rows, 5), np.float32))
        with pytest.raises(ValueError, match=rf"Expected 4 values a row in .*{last.name}, .* got 5"):
            ActivationStore(store.path)
    last.unlink()
    with pytest.raises(FileNotFoundError, match=rf"Expected the shard .*{last.name}"):
        ActivationStore(store.path)
    for path in store.path.glob("index_*.csv"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match="no packed store"):
        ActivationStore(store.path)


def test_row_ranges_that_overlap(store):
    index = store.path / "index_00000.csv"
    index.write_text(index.read_text().replace("001,0,30,", "001,0,29,"))
    with pytest.raises(ValueError, match=r"row ranges that do not overlap in .*index_00000\.csv"):
        ActivationStore(store.path)


def test_opening_imports_neither_torch_nor_pandas(store):
    script = "import sys; from src.stores.activations.store import ActivationStore; "
    script += "ActivationStore(sys.argv[1]).rows('001'); print({'torch', 'pandas'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script, store.path], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_half_precision_is_stored_as_such_and_given_as_float32(tmp_path):
    (tmp_path / "h5_files").mkdir()
    for item_id, bag in BAGS.items():
        with h5py.File(tmp_path / "h5_files" / f"{item_id}.h5", "w") as file:
            file["features"] = bag.astype(np.float16)
    folder = FeatureFolder(tmp_path)
    store = pack_activations(folder, folder.item_ids, tmp_path / "cache")
    check_digests(store)
    assert store.dtype == store.read(0, 3).dtype == np.float16
    assert store.rows("001").dtype == store.gather(np.arange(3)).dtype == np.float32
    np.testing.assert_array_equal(store.rows("001"), BAGS["001"].astype(np.float16))
    out = np.empty((3, 4), np.float16)
    np.testing.assert_array_equal(store.gather(np.array([40, 2, 2]), out), ALL[[40, 2, 2]].astype(np.float16))
