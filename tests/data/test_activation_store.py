import multiprocessing
import pickle

import h5py
import numpy as np
import pytest

from src.data import shard_writer
from src.data.activation_store import ActivationStore
from src.data.packing import pack_activations
from src.data.readers.features import FeatureFolder
from tests.data.stores import pack

BAGS = {f"00{i}": np.random.default_rng(i).normal(size=(n, 4)).astype(np.float32) for i, n in enumerate([30, 11, 70])}
ALL = np.concatenate(list(BAGS.values()))


@pytest.fixture(params=[10**9, 64 + 16 * 25], ids=["one shard", "shards of few rows"])
def store(request, tmp_path, monkeypatch):
    """A store in one shard, and in several, which slides straddle."""
    monkeypatch.setattr(shard_writer, "SHARD_BYTES", request.param + 256)
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
    assert n_shards == 1 or n_shards == 4
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
    assert copy.identity == store.identity
    np.testing.assert_array_equal(copy.rows("002"), BAGS["002"])
    assert len(pickle.dumps(store)) < 4000
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=sum_rows, args=(store, queue))
    process.start()
    assert queue.get(timeout=60) == float(ALL[np.arange(111)].sum())
    process.join()


def test_identity_is_that_of_slides_rows_and_values(tmp_path):
    first = pack(tmp_path / "a", BAGS)
    assert pack(tmp_path / "b", BAGS).identity == first.identity
    assert pack(tmp_path / "c", BAGS | {"001": BAGS["001"] + 1}).identity != first.identity
    renamed = {("x" if item_id == "002" else item_id): bag for item_id, bag in BAGS.items()}
    assert pack(tmp_path / "d", renamed).identity != first.identity
    assert ActivationStore(first.path, item_ids=["000", "001"]).identity != first.identity


def test_subset_keeps_the_row_numbers(store):
    part = ActivationStore(store.path, item_ids=["002", "000", "missing"])
    assert part.item_ids == ["000", "002"]
    assert part.row_ranges(["002"]) == [(41, 111)]
    np.testing.assert_array_equal(part.gather(part.row_ids(["002"])), BAGS["002"])


def test_flipped_byte_is_found_by_a_full_check(store):
    path = sorted(store.path.glob("shard_*.npy"))[-1]
    content = bytearray(path.read_bytes())
    content[-6] ^= 1
    path.write_bytes(content)
    ActivationStore(store.path)
    with pytest.raises(ValueError, match=rf"slide 002 \(41 to 111, in .*{path.name} of .*changed on disk. Delete"):
        ActivationStore(store.path, verify="full")
    with pytest.raises(ValueError, match="Expected verify to be one of"):
        ActivationStore(store.path, verify="all")


@pytest.mark.parametrize("left", [0, 70, 200])
def test_shard_that_is_cut_short(store, left):
    path = store.path / "shard_00000.npy"
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(ValueError, match=rf"whole shard at .*shard_00000\.npy, got {left} bytes.*Delete the folder"):
        ActivationStore(store.path)


def test_shards_that_do_not_agree_with_the_index(store):
    last = sorted(store.path.glob("shard_*.npy"))[-1]
    index = store.path / "index.csv"
    whole = index.read_text()
    index.write_text(whole.replace(",111,", ",112,"))
    with pytest.raises(ValueError, match=r"Expected 112 rows in shard_00000.npy .*index\.csv says, got 111"):
        ActivationStore(store.path)
    index.write_text(whole.replace(",41,", ",40,", 1))
    ActivationStore(store.path)  # a gap is allowed: rows that no slide owns
    index.write_text(whole.replace(",41,111", ",40,111"))
    with pytest.raises(ValueError, match=r"row ranges that do not overlap in .*index\.csv"):
        ActivationStore(store.path)
    index.write_text(whole.replace("stored_digest", "other"))
    with pytest.raises(ValueError, match=r"Expected the columns .* in .*index\.csv"):
        ActivationStore(store.path)
    index.write_text(whole)
    np.save(last, np.zeros((len(np.load(last)), 5), np.float32))
    if last.name == "shard_00000.npy":
        with pytest.raises(ValueError, match="slide 000"):
            ActivationStore(store.path, verify="full")
    else:
        with pytest.raises(ValueError, match=rf"Expected 4 values of float32 a row in .*{last.name}"):
            ActivationStore(store.path)
    index.unlink()
    with pytest.raises(FileNotFoundError, match="no packed store, or not finished"):
        ActivationStore(store.path)


def test_half_precision_is_stored_as_such_and_given_as_float32(tmp_path):
    (tmp_path / "h5_files").mkdir()
    for item_id, bag in BAGS.items():
        with h5py.File(tmp_path / "h5_files" / f"{item_id}.h5", "w") as file:
            file["features"] = bag.astype(np.float16)
    folder = FeatureFolder(tmp_path)
    store = pack_activations(folder, folder.item_ids, tmp_path / "cache", verify="full")
    assert store.dtype == store.read(0, 3).dtype == np.float16
    assert store.rows("001").dtype == store.gather(np.arange(3)).dtype == np.float32
    np.testing.assert_array_equal(store.rows("001"), BAGS["001"].astype(np.float16))
    out = np.empty((3, 4), np.float16)
    np.testing.assert_array_equal(store.gather(np.array([40, 2, 2]), out), ALL[[40, 2, 2]].astype(np.float16))
