import numpy as np
import pytest
import torch

from src.data.feeding.row_source import ImageRows
from src.data.feeding.rows import BufferPool, StoreRows, copy_rows, take_rows
from tests.data.stores import pack


@pytest.fixture
def store(tmp_path):
    rng = np.random.default_rng(0)
    return pack(tmp_path / "f", {name: rng.normal(size=(n, 3)) for name, n in (("a", 4), ("b", 1), ("c", 6))})


@pytest.mark.parametrize("item_ids", [["a", "b", "c"], ["c", "a"], ["a", "c"], ["b"]])
def test_rows_in_the_order_of_the_slides(store, item_ids):
    rows = StoreRows(store, item_ids)
    expected = np.concatenate([store.rows(item_id) for item_id in item_ids])
    assert (len(rows), rows.n_rows, rows.d_in, rows.dtype) == (len(expected), len(expected), 3, np.float32)
    lengths = [len(store.rows(item_id)) for item_id in item_ids]
    np.testing.assert_array_equal(rows.slide_starts, np.cumsum([0, *lengths])[:-1])
    for start in range(len(expected) + 1):
        for stop in range(start, len(expected) + 1):
            np.testing.assert_array_equal(rows.read(start, stop), expected[start:stop])


def test_identity_is_of_slides_and_their_order(store):
    identities = {StoreRows(store, item_ids).identity for item_ids in (["a", "b"], ["b", "a"], ["a"])}
    assert len(identities) == 3
    assert StoreRows(store, ["a", "b"]).identity in identities


def test_no_slides(store):
    rows = StoreRows(store, [])
    assert len(rows) == 0
    assert rows.read(0, 0).shape == (0, 3)


def test_unknown_slide(store):
    with pytest.raises(ValueError, match=r"got \['x'\]"):
        StoreRows(store, ["x"])


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_rows_are_taken_and_copied_as_float32(dtype):
    rows = np.random.default_rng(0).normal(size=(2000, 5)).astype(dtype)
    row_ids = np.random.default_rng(1).permutation(2000)[:1300]
    out = np.empty((1300, 5), dtype=np.float32)
    take_rows(rows, row_ids, out)
    np.testing.assert_array_equal(out, rows[row_ids].astype(np.float32))
    rows.flags.writeable = False
    copy_rows(rows[:1300], out)
    np.testing.assert_array_equal(out, rows[:1300].astype(np.float32))
    take_rows(rows, row_ids[:0], out[:0])


def test_memory_is_used_again_only_when_nobody_holds_it():
    pool = BufferPool()
    held = []
    for i in range(6):
        array = pool.take((2, 3))
        array[:] = i
        held.append(torch.from_numpy(array))
    assert [int(tensor[0, 0]) for tensor in held] == list(range(6))
    kept = held[2][1:].T  # a view of a view, its bases gone
    del held, array
    addresses = {pool.take((1 + i % 2, 3)).ctypes.data for i in range(9)}
    assert len(addresses) == 1
    pool.take((2, 3))[:] = 9
    assert kept.tolist() == [[2.0]] * 3
    assert pool.take((5, 3)).shape == (5, 3)


def test_images_are_rows_side_by_side(store):
    rows = StoreRows(store, ["a", "c"])
    images = ImageRows(rows, n_tokens=2)
    assert (images.n_rows, images.d_in) == (5, 6)
    np.testing.assert_array_equal(images.read(1, 4), rows.read(2, 8).reshape(3, 6))
    np.testing.assert_array_equal(images.slide_starts, [0, 2])
    assert images.identity != ImageRows(rows, n_tokens=1).identity
    with pytest.raises(ValueError, match=r"multiple of train\.n_tokens=4 rows a slide, got 6"):
        ImageRows(rows, n_tokens=4)
    with pytest.raises(ValueError, match="at least 1 row an image, got 0"):
        ImageRows(rows, n_tokens=0)
